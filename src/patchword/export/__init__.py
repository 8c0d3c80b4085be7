"""`patchword export`: write a trained model so that timm and transformers can load its towers."""

"""A trained model for others: towers as timm and transformers load them, heads and objective beside them."""

"""`patchword verify`: a comparison of every objective in every mode of training with one process."""

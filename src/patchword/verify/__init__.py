"""`patchword verify`: every objective in every mode of training, against one process."""

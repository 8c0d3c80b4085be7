"""`patchword compare`: a grid of variants and seeds, each run an ordinary `fit` and `test` in a folder of its own."""

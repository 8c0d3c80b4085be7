"""`patchword compare`: a grid of variants and seeds, in which each run is a `fit` and a `test` in its own folder."""

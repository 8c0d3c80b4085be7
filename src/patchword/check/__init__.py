"""`patchword check`: one objective, of anybody, against the contract of all objectives."""

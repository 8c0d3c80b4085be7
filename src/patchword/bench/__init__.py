"""`patchword bench`: what each objective costs, beside the plain formula and beside open_clip.

`candidates.py` says what is compared, `plain.py` holds the textbook formulas, `peers.py` open_clip's losses,
`measure.py` the clock and the memory, `command.py` the options, the table and the CSV file.
"""

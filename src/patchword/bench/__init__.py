"""`patchword bench`: the cost of each objective compared with its plain formula and with open_clip.

`candidates.py` defines what is compared, `plain.py` and `plain_parts.py` have the plain formulas, `peers.py` has
open_clip's losses, `measure.py` measures time and memory, and `command.py` has the options, the table and the CSV file.
"""

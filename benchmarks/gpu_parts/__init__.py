"""The parts of `benchmarks/gpu.py`: each file with a function `cases` is one part.

`cases(setup)` yields the name of each case with a function that measures it and returns the numbers of its `Row`.
"""

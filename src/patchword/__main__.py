"""Lets `python -m patchword` run the command `patchword`."""

from patchword.cli import main

if __name__ == "__main__":
    main()

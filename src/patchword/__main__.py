"""`python -m patchword` is the command `patchword`."""

from patchword.cli import main

if __name__ == "__main__":
    main()

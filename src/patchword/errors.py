"""The one exception that means: the input is at fault, not the program."""


class InputError(ValueError):
    """A mistake in a configuration, a file or a value that its author can mend.

    The message names the file, key or row and says what to do. The command line prints it alone, without a
    traceback, and exits with a code other than zero.
    """

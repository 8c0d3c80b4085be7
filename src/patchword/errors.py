"""Exceptions whose message is meant for the user: the command line prints it alone."""


class InputError(ValueError):
    """A mistake in a configuration, a file or a value that its author can mend.

    The message names the file, key or row and says what to do. The command line prints it alone, without a
    traceback, and exits with a code other than zero.
    """


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why, and what is left."""

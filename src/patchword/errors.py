"""Exceptions whose message is written for the user."""


class UserError(ValueError):
    """An error in a configuration, a file or a value that the user can fix.

    The message names the file, key or row and says what to do. The command line prints only the message, without a
    traceback, and exits with a code other than zero.
    """


class TrainingError(RuntimeError):
    """Training cannot continue; the message says why, and which checkpoint remains."""

"""The one kind of error that a user can mend."""


class UserError(Exception):
    """Something the user gave is wrong; the message is all that is shown.

    A message says what is wrong, which file or key, what was expected, and what to do.
    The recipes print it without a traceback and leave with exit code 2.

    Example
    -------
    >>> raise UserError("data_folder: /data/Libri2Mix does not exist")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: data_folder: /data/Libri2Mix does not exist
    """

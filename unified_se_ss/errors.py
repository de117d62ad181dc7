"""The one kind of error that a user can mend."""

SHOWN = 60
"""Values in messages are cut to this many characters."""


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


def shortened(value) -> str:
    """A value in few words, as YAML writes it, for messages.

    Example
    -------
    >>> shortened("a" * 1000)[-8:], shortened(None)
    ('aaaaa...', 'null')
    """
    try:
        text = "null" if value is None else repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."

"""A recogniser's tokenizer, from a file that somebody else may have made.

Needs sentencepiece (and SpeechBrain), so it is imported where a recogniser is at hand.
"""

from __future__ import annotations

from pathlib import Path

from unified_se_ss.errors import UserError
from unified_se_ss.recognition import Tokens

LARGEST_TOKENIZER = 1 << 24  # bytes


def read_tokens(path, n_tokens: int) -> Tokens:
    """The tokenizer of a file, looked over.

    Arguments
    ---------
    path : str or Path
        A sentencepiece model.
    n_tokens : int
        How many the network knows.

    Raises
    ------
    UserError
        It is too large, no sentencepiece model, holds what is no text, or more tokens
        than the network knows.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if size > LARGEST_TOKENIZER:
        raise UserError(
            f"{path}: has {size} bytes, more than {LARGEST_TOKENIZER}; no tokenizer of a "
            "recogniser here"
        )
    tokens = Tokens(path)
    if len(tokens) > n_tokens:
        raise UserError(
            f"{path}: holds {len(tokens)} tokens, but the network knows {n_tokens}; take "
            "the file that belongs to these weights"
        )
    return tokens

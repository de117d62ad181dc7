"""What fuzzing tests share: an input is handled, or refused by a message that names it."""

from __future__ import annotations

from collections import Counter

import numpy as np

from unified_se_ss.errors import UserError

LONGEST_MESSAGE = 1000


class Tally(Counter):
    """How many inputs of each kind were handled and refused."""

    def tried(self, kind: str, name, function, *arguments):
        """Call a function: its result, or None after a UserError that names the input.

        Any other exception passes, and fails the test.
        """
        try:
            result = function(*arguments)
        except UserError as error:
            check_message(str(error), name)
            self[kind, "refused"] += 1
            return None
        self[kind, "handled"] += 1
        return result

    def inputs(self) -> int:
        """How many there were."""
        return sum(self.values())


def check_message(message: str, *words) -> None:
    """A message for people: names what it is about, is short, and is no traceback."""
    for word in words:
        assert str(word) in message, message
    assert "Traceback" not in message and len(message) < LONGEST_MESSAGE, message


def noise(samples: int = 400, seed: int = 0) -> np.ndarray:
    """A signal [T] that no coder makes short."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples)

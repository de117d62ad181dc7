"""Weights: read without running anything, and compared name by name."""

from __future__ import annotations

from pathlib import Path

import torch

from unified_se_ss.errors import UserError

NAMES_SHOWN = 5


def read_safetensors(path) -> dict[str, torch.Tensor]:
    """Read the weights of an exported model.

    Raises
    ------
    UserError
        Not whole, or not safetensors; a pickle is named as such and not opened.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        # A pickle, or torch.save's archive. Safetensors begin with the length of their
        # header, in eight bytes of any value, and the header with a brace.
        if start[8:] != b"{" and (start[:1] == b"\x80" or start[:2] == b"PK"):
            raise UserError(
                f"{path}: is a pickle, not safetensors; refused, because opening a pickle "
                "can run code. Export the model again from its run"
            )
        return load_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); copy it or export it again"
        ) from error


def read_checkpoint(path) -> dict[str, torch.Tensor]:
    """Read a state dictionary that ``torch.save`` wrote; anything else is refused.

    Raises
    ------
    UserError
        Not whole, or it holds more than tensors.
    """
    path = Path(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # torch's unpickler fails of a bad file in any way there is
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: not a whole checkpoint of weights ({reason}); nothing in it was run"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor)
        for name, value in state.items()
    ):
        raise UserError(f"{path}: expected weights by name; it holds something else")
    return dict(state)


def average(states) -> dict[str, torch.Tensor]:
    """The mean of state dictionaries, as SpeechBrain's ``average_checkpoints`` takes it.

    Arguments
    ---------
    states : iterable of dict
        At least one; two at a time are held. What is no floating-point number is rounded
        as a module that loads the mean rounds it.

    Raises
    ------
    KeyError, RuntimeError
        They are of different networks.

    Example
    -------
    >>> average([{"a": torch.zeros(2)}, {"a": torch.ones(2)}])
    {'a': tensor([0.5000, 0.5000])}
    """
    states = iter(states)
    sums, count = dict(next(states)), 1
    for state in states:
        if set(state) != set(sums):
            raise KeyError(shortened(sorted(set(state) ^ set(sums))))
        for name, value in state.items():
            if value.shape != sums[name].shape:  # which might add up all the same
                raise RuntimeError(f"{name}: shapes differ")
            sums[name] = sums[name] + value
        count += 1
    return {name: (total / float(count)).to(total.dtype) for name, total in sums.items()}


def check_state(expected: dict, found: dict, path) -> None:
    """Stop unless the weights found are those expected, in name, shape and type.

    Arguments
    ---------
    expected : dict
        State of the network; its tensors may be on the device ``meta``.
    found : dict
        What a file holds.
    path : str or Path
        The file, for messages.

    Raises
    ------
    UserError
        Lists what is missing, unexpected, of another shape or type, or not finite.

    Example
    -------
    >>> check_state({"a": torch.zeros(2)}, {"b": torch.zeros(3)}, "w.safetensors")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: w.safetensors: these are not the weights of this network.
      missing (1): a
      unexpected (1): b
    Use the config.json that belongs to these weights, or export the model again.
    """
    both = [name for name in expected if name in found]
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
            for name in both
            if found[name].shape != expected[name].shape
        ],
        "of another type": [
            f"{name} {found[name].dtype} instead of {expected[name].dtype}"
            for name in both
            if found[name].dtype != expected[name].dtype
        ],
        "not finite": [name for name in both if not found[name].isfinite().all()],
    }
    lines = [f"  {what} ({len(n)}): {shortened(n)}" for what, n in problems.items() if n]
    if lines:
        raise UserError(
            f"{path}: these are not the weights of this network.\n"
            + "\n".join(lines)
            + "\nUse the config.json that belongs to these weights, or export the model "
            "again."
        )


def shortened(names: list[str]) -> str:
    """The first few of a list, and how many more there are.

    Example
    -------
    >>> shortened(list("abcdefg"))
    'a, b, c, d, e … and 2 more'
    """
    shown = ", ".join(name[:120] for name in names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} … and {more} more" if more > 0 else shown

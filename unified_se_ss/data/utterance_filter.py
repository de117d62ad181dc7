"""Utterances that can be trained on, and those that cannot, by name."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NamedTuple

from unified_se_ss.data.manifest import Item, Manifest
from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write, csv_text

logger = logging.getLogger(__name__)

USES = ("leave_out", "error")
SHOWN = 5


class UtteranceLimits(NamedTuple):
    """What an utterance must keep to, for a recogniser to learn from it.

    Arguments
    ---------
    max_duration : float or None
        Seconds.
    encode : callable
        Takes a transcript, returns its tokens.
    unknown : callable
        Takes a transcript, returns what in it no token stands for.
    count_frames : callable
        Takes a number of samples, returns the number of frames that CTC aligns with.
    sample_rate : int
        Hz of the samples.
    """

    max_duration: float | None
    encode: object
    unknown: object
    count_frames: object
    sample_rate: int

    def violation(self, item: Item) -> str | None:
        """What is wrong with an utterance, in words; None if nothing is."""
        text = item.attributes["transcript"]
        if not text.strip():
            return "its transcript is empty"
        if self.max_duration is not None and item.duration > self.max_duration:
            return f"it lasts {item.duration:.1f} s, longer than max_duration"
        if unknown := self.unknown(text):
            return f"no token stands for {', '.join(map(repr, unknown))}"
        tokens = self.encode(text)
        # CTC needs a frame for each token, and one between two that are equal.
        needed = len(tokens) + sum(a == b for a, b in zip(tokens, tokens[1:]))
        frames = self.count_frames(round(item.duration * self.sample_rate))
        if frames < needed:
            return f"its {len(tokens)} tokens need {needed} frames, and it has {frames}"
        return None


def filter_utterances(
    manifest: Manifest, limits: UtteranceLimits, use: str, path
) -> Manifest:
    """A manifest without the utterances that cannot be trained on.

    Arguments
    ---------
    manifest : Manifest
        With transcripts.
    limits : Limits
        What an utterance must keep to.
    use : str
        What becomes of the others: ``"leave_out"``: they are counted, and named in a
        CSV file with the reason; ``"error"``: the first ones are named in an error.
    path : str or Path
        The CSV file; it is not written if all can be used, and removed if it is there.

    Returns
    -------
    Manifest

    Raises
    ------
    UserError
        Some cannot be used and `use` is ``"error"``, or none can.
    """
    reasons = {item.id: limits.violation(item) for item in manifest.items}
    broken = {name: reason for name, reason in reasons.items() if reason}
    path.unlink(missing_ok=True)
    if not broken:
        return manifest
    shown = "; ".join(f"{name}: {reason}" for name, reason in list(broken.items())[:SHOWN])
    more = f"; and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    if use == "error" or len(broken) == len(manifest):
        raise UserError(
            f"{manifest.path}: {len(broken)} of {len(manifest)} utterances cannot be "
            f"trained on: {shown}{more}. Mend them"
            + (", or leave them out with --unusable leave_out" if use == "error" else "")
        )
    rows = [{"ID": name, "reason": reason} for name, reason in broken.items()]
    atomic_write(path, csv_text(rows))
    logger.warning(
        "%s: %d of %d utterances are left out of training (%s names them): %s%s",
        manifest.path,
        len(broken),
        len(manifest),
        path,
        shown,
        more,
    )
    kept = tuple(item for item in manifest.items if item.id not in broken)
    return replace(manifest, items=kept)

"""What the keys of a YAML file may hold, and in words what was expected instead.

A kind of value has ``error_for(value)``: what was expected, or None if the value is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from unified_se_ss.errors import shortened

#: What a whole number may be at most where nothing else is said.
LARGEST = 2**31 - 1
#: What stands for the largest budget that fits (see training.autotune).
AUTO = "auto"


@dataclass(frozen=True)
class Number:
    """A finite number, or a whole one, within bounds; or one of some words.

    Example
    -------
    >>> Number(least=0).complaint("much"), Number(least=0).complaint(-1)
    ('a number, 0 or more', '0 or more')
    >>> Number(words=("auto",)).complaint("auto"), Number(words=("auto",)).complaint("much")
    (None, 'a number, or auto')
    >>> Number(more_than=0, most=1).complaint(0.5), Number(whole=True).complaint(0.5)
    (None, 'a whole number')
    """

    least: float = -math.inf
    most: float = math.inf
    more_than: float = -math.inf
    whole: bool = False
    null: bool = False
    words: tuple[str, ...] = ()

    def error_for(self, value) -> str | None:
        """What was expected, if not this."""
        if value is None and self.null or isinstance(value, str) and value in self.words:
            return None
        kinds = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return self._all
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if value > self.most:
            return self._high
        return None if value >= self.least and value > self.more_than else self._low

    @property
    def _all(self) -> str:
        high = "" if self.most == LARGEST else self._high  # goes without saying
        bounds = " and ".join(filter(None, [self._low, high]))
        words = ["a whole number" if self.whole else "a number", bounds]
        words += [f"or {word}" for word in self.words]
        return ", ".join(filter(None, words)) + _or_null(self.null)

    @property
    def _low(self) -> str:
        if self.more_than > -math.inf:
            return f"more than {self.more_than:g}"
        return "" if self.least == -math.inf else f"{self.least:g} or more"

    @property
    def _high(self) -> str:
        return "" if self.most == math.inf else f"{self.most:.10g} or less"


def Whole(least=-math.inf, most=LARGEST, null=False) -> Number:
    """A whole number within bounds."""
    return Number(least, most, whole=True, null=null)


@dataclass(frozen=True)
class Switch:
    """True or False.

    Example
    -------
    >>> Switch().complaint(1)
    'True or False'
    """

    def error_for(self, value) -> str | None:
        """What was expected, if not this."""
        return None if isinstance(value, bool) else "True or False"


@dataclass(frozen=True)
class Text:
    """A text that is not empty.

    Example
    -------
    >>> Text().complaint(""), Text(null=True).complaint(None)
    ('a text', None)
    """

    null: bool = False

    def error_for(self, value) -> str | None:
        """What was expected, if not this."""
        right = isinstance(value, str) and value.strip() or value is None and self.null
        return None if right else "a text" + _or_null(self.null)


@dataclass(frozen=True)
class ListOf:
    """A list, each element of one kind; not empty.

    Example
    -------
    >>> ListOf(Number(least=0)).complaint([1, "two"])
    "a list, each element a number, 0 or more, but its element 2 is 'two'"
    """

    element: object
    null: bool = False

    def error_for(self, value) -> str | None:
        """What was expected, if not this."""
        if value is None and self.null:
            return None
        if not isinstance(value, (list, tuple)):
            return "a list" + _or_null(self.null)
        if not value:
            return "a list of one element or more" + _or_null(self.null)
        for place, item in enumerate(value, start=1):
            expected = self.element.error_for(item)
            if expected:
                found = f"but its element {place} is {shortened(item)}"
                return f"a list, each element {expected}, {found}"
        return None


@dataclass(frozen=True)
class Keys:
    """Keys with values: what an object is made with, or options.

    Example
    -------
    >>> Keys().complaint([])
    'keys with values'
    """

    def error_for(self, value) -> str | None:
        """What was expected, if not this."""
        right = isinstance(value, Mapping)
        return None if right else "keys with values"


@dataclass(frozen=True)
class Anything:
    """No more is known of it than that the recipe will say."""

    def error_for(self, value) -> None:
        """Nothing is wrong."""


def _or_null(null: bool) -> str:
    """The end of what is expected."""
    return ", or null" if null else ""


COUNT = Whole(1)
#: What a key holds in every recipe that has it.
COMMON = {
    "seed": Whole(0, 2**32 - 1),
    # Where things are
    "experiment_name": Text(),
    "output_folder": Text(),
    "save_folder": Text(),
    "data_folder": Text(),
    "dynamic_speech_folder": Text(null=True),
    "dynamic_noise_folder": Text(null=True),
    "mono_folder": Text(null=True),
    "rooms_folder": Text(null=True),
    "demo_speech": Text(null=True),
    "demo_noise": Text(null=True),
    "pretrained_ss": Text(null=True),
    "pretrained_front": Text(null=True),
    "upload_uri": Text(null=True),
    # Data
    "n_speakers": COUNT,
    "sample_rate": Whole(1000, 1_000_000),
    "segment_seconds": Number(more_than=0, null=True),
    "test_seconds": Number(more_than=0),
    "quiet_seconds": Number(least=0),
    "speed_percents": ListOf(Whole(50, 200), null=True),
    "dynamic_mixing": Switch(),
    "dynamic_items": Whole(1, null=True),
    "n_train": COUNT,
    "n_valid": COUNT,
    "n_test": COUNT,
    "array_share": Number(least=0, most=1),
    "interferer_probability": Number(least=0, most=1),
    "least_angle": Number(least=0, most=180),
    "max_duration": Number(more_than=0, null=True),
    "snr_range": ListOf(Number(least=-100, most=100)),
    "n_tokens": Whole(5),  # four of them are no text
    "normalise_by": COUNT,
    "channel": COUNT,
    # Batches
    "batch_size": Whole(1, null=True),
    "batch_seconds": Number(more_than=0, null=True, words=(AUTO,)),
    "valid_batch_size": COUNT,
    "num_workers": Whole(0),
    # Tasks and losses
    "use_se": Switch(),
    "rule": Text(),
    "rule_options": Keys(),
    "aux_ratio": Number(more_than=0),
    "aux_decay": Number(least=0, most=1),
    "weight_se": Number(least=0),
    "weight_si_snr": Number(least=0),
    "weight_ctc": Number(least=0, most=1),
    "label_smoothing": Number(least=0, most=1),
    "ild_weight": Number(least=0),
    "ipd_weight": Number(least=0),
    "loss_threshold": Number(null=True),
    "loss_window": COUNT,
    "loss_hop": COUNT,
    # Training
    "number_of_epochs": COUNT,
    "budget_minutes": Number(more_than=0, null=True),
    "lr": Number(least=0),
    "final_lr": Number(least=0),
    "warmup_steps": COUNT,
    "total_steps": COUNT,
    "average_checkpoints": COUNT,
    "grad_accumulation_factor": COUNT,
    "max_grad_norm": Number(more_than=0),
    "nonfinite_patience": Whole(0),
    "max_skipped_share": Number(least=0, most=1),
    "rank_timeout_minutes": Number(more_than=0, most=100_000),
    "log_interval": COUNT,
    "tensorboard": Switch(),
    "save_waves": Whole(0),
    "scoring_processes": Whole(1, null=True),
    "score_untrained": Switch(),
    "beam_size": COUNT,
    "search_ctc_weight": Number(least=0, most=1),
    "language_weight": Number(least=0),
    # Network
    "kernel_size": COUNT,
    "tcn_kernel_size": COUNT,
    "stride": COUNT,
    "window": COUNT,
    "n_basis": COUNT,
    "n_features": COUNT,
    "chunk_length": COUNT,
    "hidden": COUNT,
    "feed_forward": COUNT,
    "repeats": COUNT,
    "se_blocks": COUNT,
    "ss_blocks": COUNT,
    "se_layers": COUNT,
    "ss_layers": COUNT,
    "bottleneck": COUNT,
    "mask_limit": Number(more_than=0),
    "causal": Switch(),
    "share_ears": Switch(),
    "freeze_se": Switch(),
    "n_mels": COUNT,
    "d_model": COUNT,
}


def kind_of(key: str, default):
    """What a key may hold: as :data:`COMMON` says, else what its value in the YAML file is.

    Arguments
    ---------
    key : str
        Its name.
    default
        Its value in the file, as :func:`~unified_se_ss.plain_yaml.plain_yaml` reads it.

    Example
    -------
    >>> kind_of("lr", 0.1).complaint(-1), kind_of("my_switch", True).complaint("maybe")
    ('0 or more', 'True or False')
    """
    return COMMON[key] if key in COMMON else _kind_like(default)


def _kind_like(value):
    """The kind that a value is of; of what is constructed or null, nothing is known."""
    if isinstance(value, bool):
        return Switch()
    if isinstance(value, (int, float)):
        return Number()
    if isinstance(value, str):
        return Text()
    if isinstance(value, dict):
        return Keys()
    if isinstance(value, list):
        kinds = {_kind_like(item) for item in value}
        return ListOf(kinds.pop() if len(kinds) == 1 else Anything())
    if isinstance(value, tuple) and isinstance(value[1], dict):
        return Keys()
    return Anything()

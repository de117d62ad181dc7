"""Weights of SpeechBrain's dual-path networks under this project's names, and back."""

from __future__ import annotations

import re

import torch

# (SpeechBrain's name, this project's name); the first that matches the start counts.
# {} stands for a number, and for the same number on the other side.
NAMES = [
    ("norm.", "norm."),
    ("conv1d.", "bottleneck."),
    ("dual_mdl.{}.intra_norm.", "blocks.{}.intra_norm."),
    ("dual_mdl.{}.inter_norm.", "blocks.{}.inter_norm."),
    ("prelu.", "activation."),
    ("conv2d.", "split."),
    ("output.0.", "output."),
    ("output_gate.0.", "gate."),
    ("end_conv1x1.", "expand."),
]
for _path in ("intra", "inter"):
    _theirs, _ours = f"dual_mdl.{{}}.{_path}_mdl.mdl.", f"blocks.{{}}.{_path}."
    NAMES += [
        (f"dual_mdl.{{}}.{_path}_linear.w.", f"blocks.{{}}.{_path}_linear."),
        (f"{_theirs}rnn.", f"{_ours}rnn."),
        (
            f"{_theirs}layers.{{}}.self_att.att.in_proj_",
            f"{_ours}layers.{{}}.attention.projection.",
        ),
        (
            f"{_theirs}layers.{{}}.self_att.att.out_proj.",
            f"{_ours}layers.{{}}.attention.output.",
        ),
        (f"{_theirs}layers.{{}}.pos_ffn.ffn.", f"{_ours}layers.{{}}.feed_forward."),
        (f"{_theirs}layers.{{}}.norm1.norm.", f"{_ours}layers.{{}}.attention_norm."),
        (f"{_theirs}layers.{{}}.norm2.norm.", f"{_ours}layers.{{}}.feed_forward_norm."),
        (f"{_theirs}norm.norm.", f"{_ours}norm."),
    ]

# Convolutions of kernel 1 in SpeechBrain are linear layers here: trailing axes of 1.
CONVOLUTIONS = {
    "conv1d.weight": 1,
    "conv2d.weight": 2,
    "output.0.weight": 1,
    "output_gate.0.weight": 1,
    "end_conv1x1.weight": 1,
}
# SpeechBrain keeps its table of positions in the state; here it is computed.
COMPUTED = re.compile(r"dual_mdl\.\d+\.(intra|inter)_mdl\.pos_enc\.pe$")


def _rename(name: str, names: list[tuple[str, str]]) -> str:
    for old, new in names:
        match = re.match(re.escape(old).replace(r"\{\}", r"(\d+)"), name)
        if match:
            return new.format(*match.groups()) + name[match.end() :]
    raise KeyError(name)


def from_speechbrain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate the state of SpeechBrain's ``Dual_Path_Model`` into that of ``DualPath``.

    Arguments
    ---------
    state : dict
        ``state_dict()`` of a ``speechbrain.lobes.models.dual_path.Dual_Path_Model``
        with ``SBTransformerBlock`` or ``SBRNNBlock`` and ``norm: ln``.

    Returns
    -------
    dict
        For ``DualPath.load_state_dict``.

    Raises
    ------
    KeyError
        A name that such a model does not have.

    Example
    -------
    >>> list(from_speechbrain({"conv2d.weight": torch.zeros(4, 2, 1, 1)}))
    ['split.weight']
    """
    translated = {}
    for name, value in state.items():
        if COMPUTED.match(name):
            continue
        if name in CONVOLUTIONS:
            value = value.flatten(1)
        translated[_rename(name, NAMES)] = value
    return translated


def to_speechbrain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate the state of a ``DualPath`` into that of SpeechBrain's ``Dual_Path_Model``.

    The tables of positions are not part of it: load with ``strict=False``, or take them
    from the model.

    Example
    -------
    >>> {n: v.shape for n, v in to_speechbrain({"split.weight": torch.zeros(4, 2)}).items()}
    {'conv2d.weight': torch.Size([4, 2, 1, 1])}
    """
    backwards = [(ours, theirs) for theirs, ours in NAMES]
    translated = {}
    for name, value in state.items():
        theirs = _rename(name, backwards)
        axes = CONVOLUTIONS.get(theirs, 0)
        translated[theirs] = value.view(value.shape + (1,) * axes)
    return translated

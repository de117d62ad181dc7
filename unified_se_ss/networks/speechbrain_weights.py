"""Weights of SpeechBrain's dual-path networks and Conv-TasNet under this project's names.

SpeechBrain has one ``MaskNet`` for each ear; here they lie side by side in one state.

Axes: G networks side by side, D features, P kernel size.
"""

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
_MODELS = [
    ("rnn.", "rnn."),
    ("layers.{}.self_att.att.in_proj_", "layers.{}.attention.projection."),
    ("layers.{}.self_att.att.out_proj.", "layers.{}.attention.output."),
    ("layers.{}.pos_ffn.ffn.", "layers.{}.feed_forward."),
    ("layers.{}.norm1.norm.", "layers.{}.attention_norm."),
    ("layers.{}.norm2.norm.", "layers.{}.feed_forward_norm."),
    ("norm.norm.", "norm."),
]
for _path in ("intra", "inter"):
    _theirs, _ours = f"dual_mdl.{{}}.{_path}_", f"blocks.{{}}.{_path}"
    NAMES.append((f"{_theirs}linear.w.", f"{_ours}_linear."))
    NAMES += [(f"{_theirs}mdl.mdl.{a}", f"{_ours}.{b}") for a, b in _MODELS]

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

    For models with ``SBTransformerBlock`` or ``SBRNNBlock`` and ``norm: ln``; a name that such
    a model does not have raises KeyError.

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

    The tables of positions are not part of it: load with ``strict=False``, or take them from
    the model.

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


BLOCK = "temporal_conv_net.temporalblock_{}_{}.layers."
# SpeechBrain's name and this project's, outside and within the blocks.
OUTER = {
    "layer_norm.gamma": "norm.weight",
    "layer_norm.beta": "norm.bias",
    "bottleneck_conv1x1.conv.weight": "bottleneck.weight",
    "mask_conv1x1.conv.weight": "masks.weight",
}
INNER = {
    "conv.conv.weight": "expand.weight",
    "act.weight": "activation.slope",
    "norm.gamma": "norm.weight",
    "norm.beta": "norm.bias",
    "DSconv.conv_0.conv.weight": "depthwise.weight",
    "DSconv.act.weight": "depthwise_activation.slope",
    "DSconv.act_0.gamma": "depthwise_norm.weight",
    "DSconv.act_0.beta": "depthwise_norm.bias",
    "DSconv.conv_1.conv.weight": "project.weight",
}


def _their_names(blocks: int, repeats: int) -> dict[str, str]:
    names = {ours: theirs for theirs, ours in OUTER.items()}
    for number in range(repeats * blocks):
        prefix = BLOCK.format(*divmod(number, blocks))
        for theirs, ours in INNER.items():
            names[f"blocks.{number}.{ours}"] = prefix + theirs
    return names


def conv_tasnet_from_speechbrain(
    *states: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Translate states of SpeechBrain's ``MaskNet`` into that of a ``TemporalConvNet``.

    The states are of one shape, with ``norm_type`` gLN or cLN; several become networks side
    by side. Missing and unknown names raise KeyError.

    Example
    -------
    >>> from speechbrain.lobes.models.conv_tasnet import MaskNet
    >>> from unified_se_ss.networks import TemporalConvNet
    >>> state = MaskNet(8, 4, 6, 3, 2, 1, 2, "gLN", False).state_dict()
    >>> network = TemporalConvNet(8, 2, 4, 6, blocks=2, repeats=1, n_networks=2)
    >>> network.load_state_dict(conv_tasnet_from_speechbrain(state, state))
    <All keys matched successfully>
    """
    within = re.compile(BLOCK.format(r"(\d+)", r"(\d+)"))
    found = [match.groups() for match in map(within.match, states[0]) if match]
    repeats, blocks = (1 + max(map(int, column)) for column in zip(*found))
    names = _their_names(blocks, repeats)
    unknown = sorted(set(states[0]) - set(names.values()))
    if unknown:
        raise KeyError(unknown[0])
    return {
        ours: torch.cat([_to_ours(ours, state[theirs]) for state in states])
        for ours, theirs in names.items()
    }


def _to_ours(name: str, value: torch.Tensor) -> torch.Tensor:
    """One of SpeechBrain's weights as that of one network, [1, …]."""
    if name.endswith("slope"):
        return value.view(1, 1, 1)
    if value.dim() == 3 and value.shape[:2] != (1, 1):
        # [out, in, 1] of kernel 1, or [D, 1, P] of one convolution per feature
        return value.squeeze(1 if "depthwise" in name else 2).t().unsqueeze(0)
    return value


def binaural_from_speechbrain(
    states: dict[str, dict[str, torch.Tensor]], variant: str
) -> dict[str, torch.Tensor]:
    """Translate a run of SpeechBrain's BinauralWSJ0Mix into the state of a BinauralNetwork.

    Arguments
    ---------
    states : dict
        ``state_dict()`` of each module by the recipe's name: ``encoderL``, ``encoderR``,
        ``masknetL``, ``masknetR``, ``decoderL``, ``decoderR``.
    variant : str
        ``"mimo"`` (there ``parallel``) or ``"independent"``. There is no ``"cross"``:
        SpeechBrain's has a layer that is drawn anew at every call.
    """
    if variant not in ("mimo", "independent"):
        raise ValueError(f"variant is '{variant}'; expected one of: mimo, independent")
    right = states["masknetR"]
    if variant == "mimo":
        right = _swap_roles(right, len(states["encoderL"]["conv1d.weight"]))
    translated = {
        f"separator.{name}": value
        for name, value in conv_tasnet_from_speechbrain(states["masknetL"], right).items()
    }
    for number, ear in enumerate("LR"):
        encoder, decoder = states[f"encoder{ear}"], states[f"decoder{ear}"]
        translated[f"front.encoders.{number}.convolution.weight"] = encoder["conv1d.weight"]
        translated[f"decoders.{number}.convolution.weight"] = decoder["weight"]
    return translated


def _swap_roles(state: dict[str, torch.Tensor], n_basis: int) -> dict[str, torch.Tensor]:
    state = dict(state)
    # Features in: the two halves change places.
    for name, axis in (
        ("layer_norm.gamma", 2),
        ("layer_norm.beta", 2),
        ("bottleneck_conv1x1.conv.weight", 1),
    ):
        state[name] = state[name].roll(n_basis, axis)
    # Masks out: so do the halves of each source's mask.
    masks = state["mask_conv1x1.conv.weight"]
    halves = masks.unflatten(0, (-1, 2, n_basis)).flip(1)
    state["mask_conv1x1.conv.weight"] = halves.flatten(0, 2)
    return state

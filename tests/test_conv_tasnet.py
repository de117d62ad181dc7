"""Conv-TasNet's separator: equal to SpeechBrain's, truly causal, blind to padding.

SpeechBrain's own ``causal=True`` is no oracle, for two reasons that hold in 1.1: each depthwise
convolution is padded twice, by (P-1)d frames on the left and, within torch's convolution, by
"same", so no frame sees itself and every block is late by d frames; and ``norm_type="gLN"``, its
default, normalises by the whole utterance, so that the first frame depends on the last.
"""

import itertools
import warnings

import pytest
import torch
from drawn import randn, shaken
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from speechbrain.lobes.models.conv_tasnet import MaskNet

from unified_se_ss.networks import TemporalConvNet
from unified_se_ss.networks.conv_tasnet import CumulativeNorm, Depthwise
from unified_se_ss.networks.speechbrain_weights import conv_tasnet_from_speechbrain

SMALL = dict(n_basis=12, n_sources=2, n_features=6, hidden=8, blocks=3, repeats=2)
CAUSAL_NORMS = ("cumulative", "frame")


def small(seed=0, **arguments):
    torch.manual_seed(seed)
    return shaken(TemporalConvNet(**{**SMALL, **arguments}).double(), seed)


def mask_net(seed=0, blocks=3, norm="gLN", causal=False, sources=2):
    torch.manual_seed(seed)
    network = MaskNet(12, 6, 8, 3, blocks, 2, sources, norm, causal)
    return shaken(network.double(), seed)


# ------------------------------------------------------------------- SpeechBrain's


@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("theirs, ours", [("gLN", "global"), ("cLN", "frame")])
def test_forward_and_gradients_equal_speechbrain(theirs, ours, sources):
    reference = mask_net(norm=theirs, sources=sources)
    network = small(seed=1, norm=ours, n_sources=sources)
    network.load_state_dict(conv_tasnet_from_speechbrain(reference.state_dict()))
    x, weight = randn(3, 12, 40), randn(3, sources, 12, 40, seed=1)
    x_reference, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, masks = reference(x_reference).transpose(0, 1), network(x_ours)
    torch.testing.assert_close(masks, expected, rtol=1e-10, atol=1e-12)
    (expected * weight).sum().backward()
    (masks * weight).sum().backward()
    torch.testing.assert_close(x_ours.grad, x_reference.grad, rtol=1e-9, atol=1e-11)
    gradients = {name: value.grad for name, value in reference.named_parameters()}
    for name, expected in conv_tasnet_from_speechbrain(gradients).items():
        assert expected.abs().max() > 0
        gradient = network.get_parameter(name).grad
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


def test_published_size_equals_speechbrain():
    torch.manual_seed(0)
    reference, network = MaskNet(128, 64, 128, 3, 8, 4, 2), TemporalConvNet(128, 2)
    network.load_state_dict(conv_tasnet_from_speechbrain(reference.state_dict()))
    assert sum(p.numel() for p in network.parameters()) == 577_856
    with torch.no_grad():
        x = randn(1, 128, 130, dtype=torch.float32).relu()
        expected = reference(x).transpose(0, 1)
        torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4)


def test_networks_side_by_side_are_the_networks():
    references = [mask_net(seed) for seed in range(3)]
    network = small(n_networks=3)
    network.load_state_dict(
        conv_tasnet_from_speechbrain(*(r.state_dict() for r in references))
    )
    x = randn(2, 3, 30, 12)
    masks = network.side_by_side(x)
    for number, reference in enumerate(references):
        expected = reference(x[:, number].transpose(1, 2)).permute(1, 3, 0, 2)
        torch.testing.assert_close(masks[:, number], expected)


def test_weights_that_do_not_belong_there_are_named():
    state = mask_net().state_dict()
    with pytest.raises(KeyError, match="no_such.weight"):
        conv_tasnet_from_speechbrain({**state, "no_such.weight": torch.zeros(1)})
    state.pop("layer_norm.gamma")
    with pytest.raises(KeyError, match="layer_norm.gamma"):
        conv_tasnet_from_speechbrain(state)


# -------------------------------------------------------------------------- causal


@pytest.mark.parametrize("norm", CAUSAL_NORMS)
def test_gradients_flow_from_the_past_only(norm):
    network = small(causal=True, norm=norm)
    x = randn(1, 12, 60).requires_grad_()
    network(x)[..., 45].sum().backward()
    seen = x.grad[0].abs().sum(0).nonzero().flatten()
    assert seen.max() == 45
    assert seen.min() == (46 - network.receptive_field if norm == "frame" else 0)


def test_cumulative_norm_is_its_definition():
    norm = CumulativeNorm(1, 5).double()
    x = 3 + randn(2, 1, 9, 5)
    for frame in range(9):
        past = x[:, :, : frame + 1]
        mean = past.mean((2, 3))
        variance = past.var((2, 3), correction=0)
        expected = (x[:, :, frame] - mean.unsqueeze(-1)) / (variance + 1e-8).sqrt()[
            ..., None
        ]
        torch.testing.assert_close(norm(x)[:, :, frame], expected)
    torch.autograd.gradcheck(norm, randn(1, 1, 4, 5).requires_grad_())


def test_cumulative_norm_stays_exact_over_minutes_in_fp32():
    norm = CumulativeNorm(1, 8)
    x = 30 + torch.randn(1, 1, 100_000, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = norm.double()(x.double())
        assert (norm.float()(x) - exact).abs().max() < 1e-4


@settings(max_examples=15, deadline=None)
@given(
    norm=st.sampled_from(CAUSAL_NORMS),
    blocks=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    kernel_size=st.integers(1, 3),
)
def test_what_is_remembered_is_all_that_counts(norm, blocks, kernel_size):
    network = small(causal=True, norm=norm, n_networks=2, kernel_size=kernel_size)
    x = randn(2, 2, sum(blocks), 12)
    memory: dict = {}
    with torch.no_grad():
        parts = [network.side_by_side(part, None, memory) for part in x.split(blocks, 2)]
        whole = network.side_by_side(x)
    torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=1e-11)


# ------------------------------------------------------------------------- padding


@settings(max_examples=20, deadline=None)
@given(
    norm=st.sampled_from(["global", "frame", "cumulative"]),
    causal=st.booleans(),
    frames=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    more=st.integers(0, 9),
)
def test_a_padded_item_gets_what_it_gets_alone(norm, causal, frames, more):
    network = small(causal=causal, norm=None if causal and norm == "global" else norm)
    size = max(frames) + more
    x = randn(len(frames), 12, size)
    for item, count in enumerate(frames):
        x[item, :, count:] = 1e3
    with torch.no_grad():
        masks = network(x, torch.tensor(frames))
        for item, count in enumerate(frames):
            alone = network(x[item : item + 1, :, :count])
            torch.testing.assert_close(
                masks[item, ..., :count], alone[0], rtol=1e-9, atol=1e-9
            )


def test_mirrored_ends_are_those_of_torch_where_torch_has_them():
    convolution = Depthwise(1, 3, 3, 4, causal=False).double()
    x = randn(1, 1, 9, 3)
    padded = torch.nn.functional.pad(x[:, 0].transpose(1, 2), (4, 4), "reflect")
    weight = convolution.weight[0].t().unsqueeze(1)
    expected = torch.nn.functional.conv1d(padded, weight, dilation=4, groups=3)
    torch.testing.assert_close(convolution(x)[0, 0], expected[0].t())


# ------------------------------------------------------------------------- the rest


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            dict(causal=True, norm="global"),
            "norm is 'global'; expected in a causal network one of: frame, cumulative",
        ),
        (dict(norm="batch"), "norm is 'batch'; expected one of: global, frame, cumulative"),
        (dict(kernel_size=4), "kernel_size is 4; expected odd, unless causal"),
    ],
)
def test_impossible_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TemporalConvNet(**{**SMALL, **arguments})


def test_side_by_side_starts_from_weights_of_its_own():
    network = TemporalConvNet(**SMALL, n_networks=3)
    for name, parameter in network.named_parameters():
        if "norm" in name or "slope" in name:
            continue
        for one, other in itertools.combinations(parameter, 2):
            assert not torch.equal(one, other)

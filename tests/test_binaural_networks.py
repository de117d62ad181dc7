"""Binaural networks: equal to SpeechBrain's recipe, blind to padding, live as at once."""

import math
import warnings
from functools import partial

import pytest
import torch
from drawn import randn, shaken
from hypothesis import example, given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from speechbrain.lobes.models import dual_path as theirs
    from speechbrain.lobes.models.conv_tasnet import MaskNet

from unified_se_ss.networks import BinauralNetwork
from unified_se_ss.networks.binaural import VARIANTS, InterauralFeatures
from unified_se_ss.networks.speechbrain_weights import binaural_from_speechbrain

SMALL = dict(n_basis=12, n_features=6, hidden=8, blocks=3, repeats=2)


def small(variant, **arguments):
    torch.manual_seed(0)
    return shaken(BinauralNetwork(variant, **{**SMALL, **arguments}).double())


# ---------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    "variant, share_ears, parameters",
    [
        ("mimo", False, 1_159_808),  # SpeechBrain's recipe
        ("independent", False, 1_134_976),  # SpeechBrain's recipe
        ("cross", False, 1_168_256),
        ("mimo", True, 580_928),
        ("independent", True, 567_488),
        ("cross", True, 596_544),
    ],
)
def test_published_sizes(variant, share_ears, parameters):
    for causal in (False, True):
        network = BinauralNetwork(variant, share_ears=share_ears, causal=causal)
        assert sum(weights.numel() for weights in network.parameters()) == parameters


# ---------------------------------------------------------------- SpeechBrain's recipe


def recipe_modules(variant, sources):
    """The modules of SpeechBrain's BinauralWSJ0Mix, in small."""
    width = 24 if variant == "mimo" else 12
    torch.manual_seed(0)
    modules = {}
    for ear in "LR":
        modules[f"encoder{ear}"] = theirs.Encoder(16, 12)
        modules[f"masknet{ear}"] = MaskNet(width, 6, 8, 3, 3, 2, sources)
        modules[f"decoder{ear}"] = theirs.Decoder(12, 1, 16, stride=8, bias=False)
    return {name: shaken(module.double()) for name, module in modules.items()}


def recipe_estimates(modules, variant, mixture):
    """Mimo: own by its encoder, the other by the other one, but left still comes first."""
    left, right = mixture.unbind(1)
    ears = []
    for ear, signal, (first, second) in (("L", left, "LR"), ("R", right, "RL")):
        masked = [modules[f"encoder{ear}"](signal)]
        if variant == "mimo":
            masked = modules[f"encoder{first}"](left), modules[f"encoder{second}"](right)
        masks = modules[f"masknet{ear}"](torch.cat(tuple(masked), 1)).chunk(len(masked), 2)
        separated = sum(
            mask * representation for mask, representation in zip(masks, masked)
        )
        decoder = modules[f"decoder{ear}"]
        ears.append(torch.stack([decoder(source) for source in separated], 1))
    return torch.stack(ears, 2)


@pytest.mark.parametrize("sources", [2, 3])
@pytest.mark.parametrize("variant", ["mimo", "independent"])
def test_equals_speechbrains_recipe_with_its_weights(variant, sources):
    modules = recipe_modules(variant, sources)
    network = small(variant, n_sources=sources)
    states = {name: module.state_dict() for name, module in modules.items()}
    network.load_state_dict(binaural_from_speechbrain(states, variant))
    mixture = randn(2, 2, 643, seed=1)
    expected = recipe_estimates(modules, variant, mixture)
    estimates = network(mixture)
    torch.testing.assert_close(estimates[..., : expected.shape[-1]], expected)
    assert (estimates[..., expected.shape[-1] :] == 0).all()
    weight = randn(*estimates.shape, seed=2)
    (estimates * weight).sum().backward()
    (expected * weight[..., : expected.shape[-1]]).sum().backward()
    gradients = {
        name: {key: value.grad for key, value in module.named_parameters()}
        for name, module in modules.items()
    }
    for name, gradient in binaural_from_speechbrain(gradients, variant).items():
        torch.testing.assert_close(network.get_parameter(name).grad, gradient)


def test_a_variant_that_speechbrain_cannot_repeat_is_refused():
    with pytest.raises(
        ValueError, match="variant is 'cross'; expected one of: mimo, indep"
    ):
        binaural_from_speechbrain({}, "cross")


# ----------------------------------------------------------------------------- ears


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_shared_ears_know_no_left_and_right(variant, causal):
    network = small(variant, share_ears=True, causal=causal)
    mixture = randn(2, 2, 400)
    torch.testing.assert_close(network(mixture.flip(1)), network(mixture).flip(2))
    torch.testing.assert_close(
        network(mixture.flip(1), torch.tensor([400, 111])),
        network(mixture, torch.tensor([400, 111])).flip(2),
    )


@pytest.mark.parametrize("share_ears", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_ear_listens_to_the_other_one_or_not(variant, share_ears):
    network = small(variant, share_ears=share_ears)
    mixture = randn(1, 2, 400)
    changed = mixture.clone()
    changed[:, 1] = randn(1, 400, seed=5)
    difference = (network(changed) - network(mixture)).abs().amax((0, 1, 3))
    assert difference[1] > 1e-4
    assert (difference[0] > 1e-4) == (variant != "independent")


def test_interaural_features_of_known_differences():
    """A tone in one bin, later and softer on the right by known amounts."""
    features = InterauralFeatures(16, 8, causal=False).double()
    time = torch.arange(4000, dtype=torch.float64) / 8000
    frequency, delay, gain = 1000.0, 125e-6, 0.25
    left = torch.sin(2 * torch.pi * frequency * time)
    right = gain * torch.sin(2 * torch.pi * frequency * (time - delay))
    found = features(torch.stack((left, right)).unsqueeze(0))
    phase = 2 * math.pi * frequency * delay
    for ear, sign in ((0, 1), (1, -1)):
        level, *phases = found[0, ear, 200].view(3, 129)[:, int(frequency / 8000 * 256)]
        assert level.item() == pytest.approx(sign * 2 * math.log10(4), abs=1e-6)
        expected = [math.cos(phase), sign * math.sin(phase)]
        assert [x.item() for x in phases] == pytest.approx(expected, abs=1e-6)
    silent = features(torch.zeros(1, 2, 400, dtype=torch.float64))
    assert (silent == 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_trained(variant):
    network = small(variant, n_sources=3)
    network(randn(1, 2, 400)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name


# -------------------------------------------------------------------------- padding


@settings(max_examples=30, deadline=None)
@given(
    variant=st.sampled_from(list(VARIANTS)),
    causal=st.booleans(),
    share_ears=st.booleans(),
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=3),
    rubbish=st.sampled_from([0.0, 1e3, float("nan")]),
)
def test_a_padded_item_gets_what_it_gets_alone(
    variant, causal, share_ears, lengths, rubbish
):
    network = small(variant, causal=causal, share_ears=share_ears)
    mixture = randn(len(lengths), 2, max(lengths))
    for item, length in enumerate(lengths):
        mixture[item, :, length:] = rubbish
    with torch.no_grad():
        estimates = network(mixture, torch.tensor(lengths))
        assert estimates.shape == (len(lengths), 2, 2, max(lengths))
        for item, length in enumerate(lengths):
            alone = network(mixture[item : item + 1, :, :length])
            torch.testing.assert_close(
                estimates[item, ..., :length], alone[0], rtol=1e-9, atol=1e-9
            )
            assert (estimates[item, ..., length:] == 0).all()


# --------------------------------------------------------------------------- causal


@example("mimo", "frame", (16, 8), [3, 4], False, 1)  # less than one window
@settings(max_examples=30, deadline=None)
@given(
    variant=st.sampled_from(list(VARIANTS)),
    norm=st.sampled_from(["cumulative", "frame"]),
    kernel_size=st.sampled_from([(16, 8), (16, 16), (20, 5), (8, 3)]),
    blocks=st.lists(st.integers(0, 90), min_size=1, max_size=8).filter(any)
    | st.just([8] * 40),
    share_ears=st.booleans(),
    n_batch=st.sampled_from([1, 3]),
)
def test_blocks_of_any_length_are_the_whole(
    variant, norm, kernel_size, blocks, share_ears, n_batch
):
    """So nothing of a block depends on those after it: the network is causal."""
    length, stride = kernel_size
    sizes = {"kernel_size": length, "stride": stride}
    network = small(variant, causal=True, norm=norm, share_ears=share_ears, **sizes).float()
    mixture = 0.1 * randn(n_batch, 2, sum(blocks), dtype=torch.float32)  # level of speech
    with torch.no_grad():
        whole = network(mixture)
    stream = network.stream(n_batch)
    for _ in range(2):  # a flushed stream begins anew
        parts, heard, said = [], 0, 0
        for block in mixture.split(blocks, -1):
            parts.append(stream(block))
            heard, said = heard + block.shape[-1], said + parts[-1].shape[-1]
            # What is owed is what a window has not yet passed: its hop at the most.
            assert heard - said < network.latency
        parts.append(stream.flush())
        torch.testing.assert_close(torch.cat(parts, -1), whole, rtol=0, atol=1e-5)


def test_the_published_size_streams_within_1e_5():
    torch.manual_seed(0)
    network = BinauralNetwork("mimo", causal=True).eval()
    mixture = 0.1 * randn(1, 2, 3200, dtype=torch.float32)
    stream = network.stream()
    blocks = [8, 1, 7, 400, 8, 8, 333, 1000, 1435]
    parts = [stream(block) for block in mixture.split(blocks, -1)]
    # 32 blocks remember (P - 1) d frames of 128 features of both ears each; with norms'
    # sums, waiting samples and the overlap.
    assert 4 * 2 * 255 * 128 * 2 * 4 <= stream.state_bytes < 2.2e6
    parts.append(stream.flush())
    with torch.no_grad():
        whole = network(mixture)
    torch.testing.assert_close(torch.cat(parts, -1), whole, rtol=0, atol=1e-5)


def test_state_does_not_grow():
    stream = small("cross", causal=True).stream()
    sizes = set()
    for _ in range(5):
        stream(randn(1, 2, 80))
        sizes.add(stream.state_bytes)
    assert len(sizes) == 1


# ------------------------------------------------------------------------- the rest


@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_autocast_stays_near_fp32(variant):
    network = small(variant).float()
    mixture, lengths = randn(2, 2, 800).float(), torch.tensor([800, 500])
    with torch.autocast("cpu", torch.bfloat16):
        half = network(mixture, lengths)
    full = network(mixture, lengths)
    assert (half - full).norm() < 0.1 * full.norm()


@pytest.mark.parametrize(
    "doing, message",
    [
        (
            partial(BinauralNetwork, "parallel"),
            "variant is 'parallel'; expected one of: mimo, independent, cross",
        ),
        (
            partial(BinauralNetwork, "mimo", causal=True, norm="global"),
            "norm is 'global'; expected in a causal network one of: frame, cumulative",
        ),
        (lambda: small("mimo").stream(), "only a causal network can separate a stream"),
        (lambda: small("mimo").latency, "only a causal network has a latency"),
        (lambda: small("mimo")(randn(2, 400)), r"is \[2, 400\]; expected \[batch, 2, sam"),
        (
            lambda: small("mimo", causal=True).stream()(randn(2, 2, 9)),
            r"the block is \[2, 2, 9\]; expected \[1, 2, samples\]",
        ),
        (
            partial(InterauralFeatures, 16, 8, False, window=255),
            "window is 255; expected even, at least 16",
        ),
    ],
)
def test_what_cannot_be_is_said(doing, message):
    with pytest.raises(ValueError, match=message):
        doing()

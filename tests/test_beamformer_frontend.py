"""The guide: a beamformer between signals, offline and frame by frame."""

import pytest
import torch

from unified_se_ss.spatial import BEAMFORMERS, BeamformerFrontend, line_array
from unified_se_ss.spatial.beamformers import SoudenMVDR, noise_context

MICROPHONES = line_array(3, 0.04)
SOURCE = torch.tensor([1.2, 0.3, 0.0])
PLACES = {"microphones": MICROPHONES, "source": SOURCE}
QUIET = 4000


def signals(T=9000, C=3):
    """Speech-like target after a quiet beginning, and noise from elsewhere: [2, C, T]."""
    generator = torch.Generator().manual_seed(0)
    dry = torch.randn(2, T + 8, generator=generator)
    target = torch.stack([dry[0, 8 - c : T + 8 - c] for c in range(C)])
    noise = torch.stack([dry[1, 2 * c : T + 2 * c] for c in range(C)])
    target[:, :QUIET] = 0
    return torch.stack([target, noise + 0.01 * torch.randn(C, T, generator=generator)])


@pytest.mark.parametrize("name", BEAMFORMERS)
@pytest.mark.parametrize("recursive", [False, True])
def test_what_becomes_of_the_parts_adds_up(name, recursive):
    guide = BeamformerFrontend(name, context_seconds=0.2, recursive=recursive, window=128)
    parts = signals(6000)
    apart = guide.of_parts(parts, MICROPHONES, SOURCE)
    assert apart.shape == (2, 6000) and apart.dtype == torch.float32
    together = guide(parts.sum(0), **PLACES)
    # The mixture is summed before or after its transform: rounding alone differs.
    assert (apart.sum(0) - together).norm() < 1e-3 * together.norm()


@pytest.mark.parametrize("name", [n for n in BEAMFORMERS if n != "delay_and_sum"])
def test_noise_is_weaker_in_the_guide(name):
    """By statistics learnt before the target speaks; fixed beams do less."""
    parts = signals()
    apart = BeamformerFrontend(name, context_seconds=0.2).of_parts(
        parts, MICROPHONES, SOURCE
    )
    before, after = (
        x[0, QUIET:].square().mean() / x[1, QUIET:].square().mean()
        for x in (parts[:, 0], apart)
    )
    least = {"superdirective": 0.3, "mvdr": 1.0}.get(name, 5.0)
    assert after > least * before


def test_an_offline_guide_is_its_beamformer():
    """The steps one by one, with torch's own transforms."""
    mixture = signals().sum(0)
    window = torch.hann_window(256).sqrt()
    spectrum = torch.stft(
        mixture, 256, 128, window=window, pad_mode="constant", return_complex=True
    )[None]
    context = noise_context(spectrum, int(0.2 * 16000) // 128)
    filtered = SoudenMVDR(loading=1e-3)(spectrum, noise=context)
    wanted = torch.istft(filtered[0], 256, 128, window=window, length=9000)
    guide = BeamformerFrontend("souden_mvdr", window=256, context_seconds=0.2, loading=1e-3)
    torch.testing.assert_close(guide(mixture), wanted)


@pytest.mark.parametrize("name", ["multichannel_wiener", "mvdr"])
def test_a_recursive_guide_does_not_look_ahead(name):
    guide = BeamformerFrontend(name, context_seconds=0.2, recursive=True, window=128)
    mixture = signals(7000).sum(0)
    changed = mixture.clone()
    changed[:, 6000:] = torch.randn(3, 1000, generator=torch.Generator().manual_seed(1))
    one, other = (guide(x, **PLACES) for x in (mixture, changed))
    # A sample is in windows that end up to one window later.
    assert torch.equal(one[: 6000 - 128], other[: 6000 - 128])
    assert not torch.equal(one[6000:], other[6000:])
    offline = BeamformerFrontend(name, context_seconds=0.2, window=128)
    one, other = (offline(x, **PLACES) for x in (mixture, changed))
    assert name == "mvdr" or not torch.equal(one[:4000], other[:4000])


def test_an_oracle_knows_both():
    target, noise = signals()
    oracle = BeamformerFrontend("multichannel_wiener", knowledge="oracle")
    apart = oracle.of_parts(torch.stack([target, noise]), target=target, noise=noise)
    assert apart[1].square().mean() < 0.1 * noise[0].square().mean()
    with pytest.raises(ValueError, match="target and noise are not given"):
        oracle(target + noise)
    assert not oracle.needs_context and BeamformerFrontend().needs_context
    assert not BeamformerFrontend("superdirective").needs_context


def test_one_microphone_passes():
    signal = signals(C=1)[:1]
    out = BeamformerFrontend("delay_and_sum").of_parts(signal, torch.zeros(1, 3), SOURCE)
    torch.testing.assert_close(out, signal[:, 0], atol=1e-5, rtol=1e-4)


def test_recursive_weights_are_those_that_recursive_applies():
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(1, 3, 5, 150, dtype=torch.complex64, generator=generator)
    mask = torch.rand(1, 5, 150, generator=generator)
    for name in ("souden_mvdr", "multichannel_wiener"):
        beamformer = BEAMFORMERS[name]()
        wanted, _ = beamformer.recursive(mixture, noise=mask)
        weights = beamformer.recursive_weights(mixture, noise=mask)
        assert weights.shape == (1, 150, 5, 3 * beamformer.taps)
        torch.testing.assert_close(beamformer.filtered(weights, mixture), wanted)
    # One item's weights serve for several spectra.
    both = beamformer.filtered(weights, torch.cat([mixture, 2 * mixture]))
    torch.testing.assert_close(both[1], 2 * wanted[0])


def test_wrong_settings_are_refused():
    for options, message in (
        ({"beamformer": "mvdrr"}, "beamformer: 'mvdrr', but there are delay_and_sum"),
        ({"knowledge": "some"}, "knowledge: 'some'"),
        ({"window": 511}, "window: 511"),
        ({"context_seconds": 0}, "context_seconds: 0"),
        ({"tapes": 3}, "multichannel_wiener: .*tapes"),
    ):
        with pytest.raises(ValueError, match=message):
            BeamformerFrontend(**options)
    with pytest.raises(ValueError, match="mvdr: needs the places"):
        BeamformerFrontend("mvdr")(torch.zeros(2, 8000))

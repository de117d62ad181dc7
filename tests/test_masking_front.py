"""The enhancement in front of a recogniser: its published size, and what padding may not do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.losses import magnitude_loss
from unified_se_ss.networks import MaskingFront
from unified_se_ss.networks.recurrent import Recurrent

SIZES = {"n_fft": 64, "hop": 32, "hidden": 5, "layers": 2, "dropout": 0.0}


def front(**changes):
    torch.manual_seed(0)
    return MaskingFront(**{**SIZES, **changes}).double().eval()


def test_the_published_size():
    count = sum(p.numel() for p in MaskingFront().parameters())
    assert count == 47_303_681  # source of 47.30 M: arXiv 2302.11362


@given(
    lengths=st.lists(st.integers(1, 700), min_size=1, max_size=4),
    extra=st.integers(0, 300),
    hop=st.sampled_from([8, 16, 32]),
)
@settings(max_examples=15, deadline=None)
def test_padding_changes_nothing(lengths, extra, hop):
    network, size = front(hop=hop), max(lengths) + extra
    generator = torch.Generator().manual_seed(1)
    signals = [torch.randn(n, generator=generator, dtype=torch.float64) for n in lengths]
    batch = torch.full((len(lengths), size), float("nan"), dtype=torch.float64)
    for row, signal in zip(batch, signals):
        row[: len(signal)] = signal
    together = network(batch, torch.tensor(lengths))
    clean = network.analyse(batch / 2, torch.tensor(lengths))[0].abs()
    losses = magnitude_loss(together.magnitude, clean, together.frames)
    for item, signal in enumerate(signals):
        alone = network(signal[None])
        n, frames = len(signal), alone.magnitude.shape[1]
        torch.testing.assert_close(together.signal[item, :n], alone.signal[0])
        torch.testing.assert_close(together.magnitude[item, :frames], alone.magnitude[0])
        assert together.frames[item] == frames
        assert not together.signal[item, n:].any()
        assert not together.magnitude[item, frames:].any()
        expected = magnitude_loss(
            alone.magnitude, network.analyse(signal[None] / 2)[0].abs()
        )
        torch.testing.assert_close(losses[item], expected[0])


@pytest.mark.parametrize("hop", [8, 16, 32])
@pytest.mark.parametrize("samples", [1, 31, 32, 33, 1000])
def test_analysis_and_synthesis_give_the_signal_back(hop, samples):
    network = MaskingFront(**{**SIZES, "hop": hop})
    signal = torch.randn(2, samples)
    spectrum, frames = network.analyse(signal)
    assert spectrum.shape[1] == frames[0] == network.count_frames(samples)
    torch.testing.assert_close(network.synthesise(spectrum, samples), signal)


def test_the_spectrum_is_torchs():
    network, signal = MaskingFront(**SIZES), torch.randn(2, 320)
    expected = torch.stft(
        signal,
        64,
        32,
        window=torch.hann_window(64),
        pad_mode="constant",
        return_complex=True,
    )
    torch.testing.assert_close(network.analyse(signal)[0], expected.transpose(1, 2))


def test_normalisation_is_that_of_the_training_set():
    network = MaskingFront(**SIZES)
    signals = [torch.randn(n) * n / 100 for n in (100, 300, 777)]
    network.fit_normalisation(signals)
    frames = torch.cat([network.analyse(s[None])[0][0].abs() for s in signals])
    torch.testing.assert_close(network.mean, frames.mean(0))
    torch.testing.assert_close(network.deviation, frames.std(0, correction=0))
    with pytest.raises(ValueError, match="no signals"):
        network.fit_normalisation([])


def test_silence_has_finite_gradients():
    network = front().train()
    noisy = torch.zeros(2, 200, dtype=torch.float64)
    network.fit_normalisation([torch.zeros(100)])
    enhanced = network(noisy, torch.tensor([200, 0]))
    (
        magnitude_loss(
            enhanced.magnitude, enhanced.magnitude.detach() + 1, enhanced.frames
        ).sum()
        + enhanced.signal.square().sum()
    ).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name


def test_it_trains_in_half_precision():
    network = MaskingFront(**SIZES)
    with torch.autocast("cpu", torch.bfloat16):
        enhanced = network(torch.randn(2, 500), torch.tensor([500, 300]))
        loss = magnitude_loss(enhanced.magnitude, torch.ones_like(enhanced.magnitude))
    loss.sum().backward()
    assert enhanced.signal.dtype == enhanced.magnitude.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_a_hop_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="hop is 24"):
        MaskingFront(n_fft=64, hop=24)


@pytest.mark.parametrize("layers", [1, 3])
def test_each_direction_apart_is_the_packed_sequence(layers):
    """On a CPU sequences are not packed; PyTorch's packing is the oracle."""
    torch.manual_seed(0)
    model = Recurrent(5, 7, layers).double()
    x = torch.randn(4, 11, 5, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([11, 3, 7, 1])
    found = []
    for run in (model, model._packed):
        y = run(x, lengths)
        weights = torch.arange(y.numel(), dtype=y.dtype).view_as(y).cos()
        gradients = torch.autograd.grad((y * weights).sum(), [x, *model.parameters()])
        found.append([y, *gradients])
    for ours, packed in zip(*found):
        torch.testing.assert_close(ours, packed, atol=1e-12, rtol=0)

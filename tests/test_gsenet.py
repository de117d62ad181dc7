"""GSENet: its size, that it never looks ahead, and that a stream gives the same."""

import numpy as np
import pytest
import scipy.signal
import torch
from drawn import randn
from hypothesis import given, settings
from hypothesis import strategies as st

from unified_se_ss.networks import GSENet
from unified_se_ss.networks.causal import (
    CausalConvolution,
    CausalSTFT,
    CausalTransposedConvolution,
)
from unified_se_ss.networks.gsenet import HEADS, PUBLISHED_BLOCKS

HOP = 160
TINY = [[2, 3, 1, 2, False], [3, 4, 2, 2, True], [4, 4, 1, 3, False]]


def tiny(blocks=TINY, **options):
    """A small network of its kind, in float64, with weights that matter everywhere."""
    torch.manual_seed(1)
    network = GSENet(blocks, bottleneck=2, kernel_size=5, **options).double()
    for parameter in network.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter)
    return network.requires_grad_(False)


@st.composite
def tables(draw):
    """Any table of up to four blocks."""
    channels = draw(st.lists(st.integers(1, 3), min_size=2, max_size=5))
    strides = st.integers(1, 3)
    return [
        [before, after, draw(strides), draw(strides), draw(st.booleans())]
        for before, after in zip(channels, channels[1:])
    ]


# ------------------------------------------------------------------ size


def published_macs():
    """Multiplications per second of audio by layer kind, counted by hand."""
    bins, rates = [161, 81, 41, 21, 11, 6], [100, 100, 50, 50, 50, 50]
    points = [f * r for f, r in zip(bins, rates)]
    macs = (4 * 16 + 16 * 2) * 49 * points[0]  # stem and head
    for row, outside, inside in zip(PUBLISHED_BLOCKS, points, points[1:]):
        narrow, wide, _, _, dilated = row
        macs += (1 + 2 * dilated) * 9 * narrow * narrow * outside  # encoder
        macs += (9 + 1) * narrow * wide * inside
        macs += 2 * dilated * 9 * wide * wide * inside  # decoder
        macs += 9 * narrow * wide * inside + 9 * narrow * narrow * outside
    return macs + (2 * 96 * 48 + 2 * 48 * 48) * 9 * points[-1]


def test_published_size():
    network, macs = GSENet(), []

    def count(layer, arguments, output):
        """A convolution multiplies by all weights at each point of its smaller side."""
        transposed = isinstance(layer, CausalTransposedConvolution)
        points = (arguments[0] if transposed else output).shape[2:].numel()
        macs.append(layer.convolution.weight.numel() * points)

    for layer in network.modules():
        if isinstance(layer, (CausalConvolution, CausalTransposedConvolution)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network.map(torch.zeros(1, 4, 100, 161))
    macs = sum(macs)
    assert sum(p.numel() for p in network.parameters()) == 1_370_898
    assert macs == published_macs()
    assert round(macs / 1e9, 1) == 1.2


# ------------------------------------------------------------------ sizes chain


@settings(max_examples=30, deadline=None)
@given(table=tables(), samples=st.integers(1, 800), head=st.sampled_from([*HEADS]))
def test_output_is_as_long_as_the_input(table, samples, head):
    network = tiny(table, head=head, window=32)
    given = network(randn(2, 2, samples))
    assert given.shape == (2, samples) and given.isfinite().all()


# ------------------------------------------------------------------ never ahead


@settings(max_examples=30, deadline=None)
@given(table=tables(), samples=st.integers(1, 150), head=st.sampled_from([*HEADS]))
def test_no_table_looks_ahead(table, samples, head):
    """NaN from sample n on: what comes a window earlier is finite, all later is NaN.

    For every n, so nothing looks ahead, and the latency is what is stated and no less.
    (The community implementation looks ahead 750 ms and more.)
    """
    network, hop = tiny(table, head=head, window=32), 16
    numbers, clean = torch.arange(samples), randn(1, 2, samples)
    poisoned = numbers >= numbers[:, None, None]
    outputs = network(torch.where(poisoned, float("nan"), clean))
    past = numbers < ((numbers // hop - 1) * hop).clamp(min=0)[:, None]
    assert torch.equal(outputs.isfinite(), past)
    torch.testing.assert_close(outputs[past], network(clean).expand_as(outputs)[past])


# ------------------------------------------------------------------ streaming


@settings(max_examples=40, deadline=None)
@given(
    table=tables(),
    head=st.sampled_from([*HEADS]),
    batch=st.integers(1, 2),
    blocks=st.lists(st.integers(0, 100) | st.just(16), min_size=1, max_size=12),
)
def test_any_blocks_of_any_table_give_the_whole(table, head, batch, blocks):
    network = tiny(table, head=head, window=32)
    stream, sizes = network.stream(), []
    signals = randn(batch, 2, sum(blocks))
    outputs = []
    for block in signals.split(blocks, -1):
        outputs.append(stream(block))
        sizes.append(kept_numbers(stream) // batch)
        given = sum(output.shape[-1] for output in outputs)
        assert given == max(0, (sum(blocks[: len(outputs)]) // 16 - 1) * 16)
    assert max(sizes) <= stream.state_size()
    outputs.append(stream.flush())
    streamed = torch.cat(outputs, -1)
    assert streamed.shape == (batch, sum(blocks))
    if sum(blocks):
        torch.testing.assert_close(streamed, network(signals), rtol=0, atol=1e-9)


def kept_numbers(stream):
    """What a stream really keeps."""
    kept = [*stream.memory, stream.waiting, stream.tail]
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)
    return sum(tensor.numel() for tensor in kept)


def test_published_network_streams():
    network, samples = GSENet(), 60 * HOP + 50
    signals = randn(1, 2, samples, dtype=torch.float32)
    cuts = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    cuts = [0, *sorted(cuts[:40].tolist()), samples]
    blocks = signals.split([b - a for a, b in zip(cuts, cuts[1:])], -1)
    stream = network.stream()
    streamed = torch.cat([*map(stream, blocks), stream.flush()], -1)
    with torch.no_grad():
        assert (streamed - network(signals)).abs().max() <= 1e-5
    assert streamed.abs().max() > 0.01


def test_the_state_is_as_large_as_stated_and_does_not_grow():
    stream, sizes = GSENet().stream(), []
    for _ in range(40):
        stream(torch.zeros(1, 2, HOP - 1))
        sizes.append(kept_numbers(stream))
    assert max(sizes) <= stream.state_size() <= 1.01 * max(sizes)
    assert max(sizes[:20]) == max(sizes)


def test_a_stream_starts_anew_after_its_end():
    network = tiny()
    stream = network.stream()
    first, second = randn(1, 2, 700), randn(2, 2, 500, seed=1)
    for signals in (first, second):
        streamed = torch.cat((stream(signals), stream.flush()), -1)
        torch.testing.assert_close(streamed, network(signals))
    assert stream.flush().shape == (1, 0)


def test_a_stream_refuses_what_is_not_its():
    stream = tiny().stream()
    stream(randn(1, 2, 10))
    with pytest.raises(ValueError, match="2 signals in a stream of 1"):
        stream(randn(2, 2, 10))
    with pytest.raises(ValueError, match="raw and beamformed"):
        stream(randn(1, 1, 10))


@pytest.mark.slow
def test_a_compiled_step_gives_the_same():
    network = GSENet(TINY, bottleneck=2)
    signals = randn(1, 2, 20 * HOP, dtype=torch.float32)
    stream = network.stream(torch.compile(network.map))
    streamed = torch.cat([*map(stream, signals.split(HOP, -1)), stream.flush()], -1)
    with torch.no_grad():
        torch.testing.assert_close(streamed, network(signals), rtol=0, atol=1e-5)


# ------------------------------------------------------------------ batches and heads


@pytest.mark.parametrize("rubbish", [0.0, 9.0, float("nan")])
def test_padding_changes_nothing(rubbish):
    network, lengths = tiny(head="mask_both"), [900, 321, 1]
    signals = randn(3, 2, 900)
    for item, length in enumerate(lengths):
        signals[item, :, length:] = rubbish
    together = network(signals, torch.tensor(lengths))
    for item, length in enumerate(lengths):
        alone = network(signals[item : item + 1, :, :length])[0]
        torch.testing.assert_close(together[item, :length], alone)
        assert (together[item, length:] == 0).all()


@pytest.mark.parametrize(
    "head, gains",
    [("mask_raw", (1, 0)), ("mask_beamformed", (0, 1)), ("mask_both", (1, 1))],
)
def test_masks_start_as_the_input_and_are_bounded(head, gains):
    network = GSENet(TINY, bottleneck=2, head=head, mask_limit=1.5)
    signals = randn(1, 2, 4000, dtype=torch.float32)
    with torch.no_grad():
        network.head.convolution.weight.zero_()
        given = network(signals)[0]
        expected = (torch.tensor(gains)[:, None] * signals[0]).sum(0) / sum(gains)
        assert torch.corrcoef(torch.stack((given, expected)))[0, 1] > 0.9999
        assert 0.8 < given.std() / expected.std() < 1
        parts = 100 * torch.randn(1, 2 * sum(gains), 3, 161)
        ones = torch.ones(1, 2, 3, 161, dtype=torch.complex64)
        spectrum = network.spectrum(parts, ones)
        assert 1 < spectrum.abs().max() <= 1.5 * sum(gains) + 1e-5


@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_finite_at_silence_and_reach_all_weights(head):
    network = GSENet(TINY, bottleneck=2, head=head)
    with torch.no_grad():
        network.head.convolution.bias.zero_()
    network(torch.zeros(1, 2, 1000)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    network(torch.randn(1, 2, 1000)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"blocks": []}, "one or more rows of: in_channels, out_channels"),
        ({"blocks": [[16, 32, 1, 2]]}, "one or more rows of"),
        ({"blocks": [[16, 32, 4, 2, False]]}, "row 1: strides must be 1, 2 or 3"),
        ({"blocks": [[16, 0, 1, 2, False]]}, "row 1: channels must be at least 1"),
        (
            {"blocks": [[16, 32, 1, 2, False], [16, 8, 1, 2, True]]},
            "row 2 takes 16 .* row 1 gives 32",
        ),
        ({"head": "masks"}, "head is 'masks'; expected one of: mapping, mask_raw"),
        ({"kernel_size": 6}, "kernel_size is 6; expected an odd number"),
        ({"window": 321}, "window is 321; expected an even number"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        GSENet(**options)


@pytest.mark.parametrize("shape", [(2, 100), (1, 1, 100), (1, 2, 0)])
def test_signals_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="raw and beamformed, at least one sample"):
        tiny()(torch.zeros(shape))


# ------------------------------------------------------------------ the layers


def test_spectra_equal_scipy():
    stft, signal = CausalSTFT(320).double(), randn(1000)
    given = stft.analyse(stft.padded(signal))
    window = np.sqrt(scipy.signal.get_window("hann", 320))
    _, _, expected = scipy.signal.stft(
        np.pad(signal.numpy(), (HOP, 280)),
        window=window,
        nperseg=320,
        noverlap=HOP,
        boundary=None,
        padded=False,
    )
    np.testing.assert_allclose(given, expected.T * window.sum(), atol=1e-4)


@given(samples=st.integers(1, 900), multiple=st.integers(1, 5))
def test_synthesis_inverts_analysis(samples, multiple):
    stft, signal = CausalSTFT(64).double(), randn(2, samples)
    spectrum = stft.analyse(stft.padded(signal, multiple))
    assert spectrum.shape[1] % multiple == 0
    restored = stft.synthesise(spectrum)[:, :samples]
    torch.testing.assert_close(restored, signal, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stride, dilation", [((1, 1), 1), ((2, 2), 1), ((1, 1), 3)])
def test_causal_convolution_is_its_definition(stride, dilation):
    layer = CausalConvolution(2, 3, 3, stride, dilation).double()
    x = randn(1, 2, 9, 7)
    given = layer(x).detach().numpy()[0]
    weight, bias = (p.detach().numpy() for p in layer.parameters())
    padded = np.pad(x.numpy()[0], ((0, 0), (2 * dilation, 0), (1, 1)))
    for frame, bin in np.ndindex(given.shape[1:]):
        t, f = frame * stride[0], bin * stride[1]
        seen = padded[:, t : t + 2 * dilation + 1 : dilation, f : f + 3]
        expected = np.einsum("octf,ctf->o", weight, seen) + bias
        np.testing.assert_allclose(given[:, frame, bin], expected)


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2), (1, 3)])
@pytest.mark.parametrize("bins", [7, 8, 9])
def test_causal_transposed_convolution_is_its_definition(stride, bins):
    layer = CausalTransposedConvolution(2, 3, 3, stride, bins).double()
    reduced_bins = -(-bins // stride[1])
    x = randn(1, 2, 4, reduced_bins)
    frames = 4 * stride[0]
    weight, bias = (p.detach().numpy() for p in layer.parameters())
    expected = np.zeros((3, frames + 3, bins + 4)) + bias[:, None, None]
    for k, f in np.ndindex(4, reduced_bins):
        t, f_out = k * stride[0], f * stride[1]
        given = np.einsum("c,cotf->otf", x.numpy()[0, :, k, f], weight)
        expected[:, t : t + 3, f_out : f_out + 3] += given
    np.testing.assert_allclose(
        layer(x, frames).detach().numpy()[0], expected[:, :frames, 1 : bins + 1]
    )

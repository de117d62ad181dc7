"""Networks: equal to SpeechBrain's with the same weights, blind to padding."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.lobes.models import dual_path as theirs

from unified_se_ss.networks import (
    Decoder,
    DualPath,
    Encoder,
    Recurrent,
    Transformer,
    UnifiedNetwork,
)
from unified_se_ss.networks.dual_path import GlobalNorm, count_chunks, overlap_add, segment
from unified_se_ss.networks.speechbrain_weights import from_speechbrain, to_speechbrain

KINDS = {
    "dprnn": (
        partial(Recurrent, n_features=12, hidden=10),
        partial(theirs.SBRNNBlock, 12, 10, 1, bidirectional=True),
        True,
    ),
    "sepformer": (
        partial(Transformer, n_features=12, layers=2, heads=3, feed_forward=20),
        partial(
            theirs.SBTransformerBlock,
            2,
            12,
            3,
            20,
            dropout=0.0,
            use_positional_encoding=True,
            norm_before=True,
        ),
        False,
    ),
}


def dual_path(kind, n_sources=2, blocks=2):
    ours, _, linear_after = KINDS[kind]
    return DualPath(
        ours,
        ours,
        n_basis=16,
        n_features=12,
        n_sources=n_sources,
        blocks=blocks,
        chunk_length=10,
        linear_after=linear_after,
    ).double()


def speechbrain_dual_path(kind, n_sources=2):
    _, model, linear_after = KINDS[kind]
    return theirs.Dual_Path_Model(
        16,
        12,
        model(),
        model(),
        num_layers=2,
        norm="ln",
        K=10,
        num_spks=n_sources,
        linear_layer_after_inter_intra=linear_after,
    ).double()


def unified(kind, n_sources=2):
    return UnifiedNetwork(
        encoder=Encoder(16, 16, 8),
        enhancer=dual_path(kind, 1, 1),
        separator=dual_path(kind, n_sources),
        decoder=Decoder(16, 16, 8),
    ).double()


def randomise(module):
    """Norms start at 1 and 0, biases often at 0; make every parameter matter."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames, n_sources", [(1, 2), (10, 3), (37, 2)])
def test_values_and_gradients_equal_speechbrains_with_its_weights(kind, frames, n_sources):
    reference = randomise(speechbrain_dual_path(kind, n_sources))
    network = dual_path(kind, n_sources)
    network.load_state_dict(from_speechbrain(reference.state_dict()))
    x = torch.rand(2, 16, frames, dtype=torch.float64)
    weights = torch.randn(2, n_sources, 16, frames, dtype=torch.float64)
    masks, expected = network(x), reference(x).transpose(0, 1)
    torch.testing.assert_close(masks, expected, rtol=1e-10, atol=1e-12)
    (masks * weights).sum().backward()
    (expected * weights).sum().backward()
    expected = from_speechbrain({n: p.grad for n, p in reference.named_parameters()})
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_translate_both_ways(kind):
    state = dual_path(kind).state_dict()
    again = from_speechbrain(to_speechbrain(state))
    assert list(again) == list(state)
    assert all(torch.equal(again[name], state[name]) for name in state)
    loaded = speechbrain_dual_path(kind).load_state_dict(
        to_speechbrain(state), strict=False
    )
    assert not loaded.unexpected_keys
    assert all(name.endswith("pos_enc.pe") for name in loaded.missing_keys)


def test_foreign_weights_are_named():
    with pytest.raises(KeyError, match="tcn.weight"):
        from_speechbrain({"tcn.weight": torch.zeros(1)})


def test_encoder_and_decoder_equal_speechbrains():
    signal = torch.randn(3, 803, dtype=torch.float64)
    encoder, decoder = Encoder(16, 16, 8).double(), Decoder(16, 16, 8).double()
    their_encoder = theirs.Encoder(16, 16).double()
    their_decoder = theirs.Decoder(16, 1, kernel_size=16, stride=8, bias=False).double()
    their_encoder.conv1d.weight.data = encoder.convolution.weight.data
    their_decoder.weight.data = decoder.convolution.weight.data
    representation = encoder(signal)
    assert torch.equal(representation, their_encoder(signal))
    synthesised = decoder(representation, 803)
    assert synthesised.shape == (3, 803)
    torch.testing.assert_close(synthesised[:, :800], their_decoder(representation))
    assert encoder.frames(803) == representation.shape[-1]


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 60), half=st.integers(1, 12))
def test_segmentation_is_speechbrains(frames, half):
    x = torch.randn(2, frames, 3, dtype=torch.float64)
    chunks = segment(x, 2 * half)
    model = theirs.Dual_Path_Model.__new__(theirs.Dual_Path_Model)
    expected, _ = theirs.Dual_Path_Model._Segmentation(model, x.transpose(1, 2), 2 * half)
    assert torch.equal(chunks, expected.permute(0, 3, 2, 1))  # from [B, D, K, S]
    assert chunks.shape[1] == count_chunks(frames, 2 * half)
    torch.testing.assert_close(overlap_add(chunks, frames), 2 * x)


def test_global_norm_is_group_norm():
    x = 3 + 2 * torch.randn(2, 5, 7, 8, dtype=torch.float64)
    norm, reference = GlobalNorm(8).double(), torch.nn.GroupNorm(1, 8, eps=1e-8).double()
    randomise(norm)
    reference.load_state_dict(norm.state_dict())
    expected = reference(x.movedim(-1, 1)).movedim(1, -1)
    torch.testing.assert_close(norm(x), expected)
    everything = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(norm(x, everything), expected)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(lengths=st.lists(st.integers(16, 900), min_size=2, max_size=4))
def test_a_padded_batch_gives_each_item_what_it_gets_alone(kind, lengths):
    torch.manual_seed(0)
    network = randomise(unified(kind))
    mixtures = [torch.randn(length, dtype=torch.float64) for length in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(mixtures, batch_first=True)
    together = network(padded, torch.tensor(lengths))
    for item, (mixture, length) in enumerate(zip(mixtures, lengths)):
        alone = network(mixture.unsqueeze(0))
        frames = alone.representation.shape[-1]
        same = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
        same(together.sources[item, :, :length], alone.sources[0])
        same(together.enhanced[item, :length], alone.enhanced[0])
        same(together.enhanced_representation[item, :, :frames], alone[3][0])
        assert not together.enhanced_representation[item, :, frames:].any()


def test_without_enhancer_it_is_a_separation_network():
    network = UnifiedNetwork(
        Encoder(16, 16, 8), dual_path("dprnn").float(), Decoder(16, 16, 8)
    )
    output = network(torch.randn(2, 400))
    assert torch.equal(output.representation, output.enhanced_representation)
    assert output.enhanced is None


def test_odd_chunks_are_refused():
    with pytest.raises(ValueError, match="chunk_length is 9; expected an even number"):
        DualPath(None, None, 4, 4, 2, 1, 9, True)


def test_positions_grow_with_the_sequence():
    model = Transformer(n_features=4, layers=1, heads=1, feed_forward=4)
    assert model(torch.randn(1, 2600, 4)).shape == (1, 2600, 4)
    reference = theirs.PositionalEncoding(4, max_len=2600)
    torch.testing.assert_close(model.positions[:2600], reference.pe[0])


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast_stays_near_fp32(kind):
    network = unified(kind).float()
    mixture = torch.randn(2, 800)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(mixture, torch.tensor([800, 500])).sources
    full = network(mixture, torch.tensor([800, 500])).sources
    assert (half - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("n_basis, kernel_size", [(64, 32), (128, 32), (96, 16)])
def test_a_fourier_basis_gives_the_signal_back(n_basis, kernel_size):
    encoder = Encoder(n_basis, kernel_size, kernel_size // 2, "fourier").double()
    decoder = Decoder(n_basis, kernel_size, kernel_size // 2, "fourier").double()
    signal = torch.randn(2, 10 * kernel_size, dtype=torch.float64)
    again = decoder(encoder(signal), signal.shape[-1])
    inside = slice(kernel_size, -kernel_size)  # the ends lie in one window only
    torch.testing.assert_close(again[:, inside], signal[:, inside], atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="twice kernel_size, not 64 and 48"):
        Encoder(64, 48, 24, "fourier")
    with pytest.raises(
        ValueError, match="initial is 'dct'; expected one of: random, fourier"
    ):
        Encoder(64, 16, 8, "dct")

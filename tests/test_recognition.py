"""The recogniser: tokens, losses, and a network in which padding changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speechbrain.lobes.features import Fbank
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR
from speechbrain.processing.features import InputNormalization

from unified_se_ss.errors import UserError
from unified_se_ss.recognition import (
    RecognitionNetwork,
    Subsampling,
    Tokens,
    attention_losses,
    ctc_losses,
)

SENTENCES = ["the old man sleeps", "a dog sings", "my cat is small", "the river is cold"]


def network(encoder="conformer", attention="RelPosMHAXL", n_tokens=7, layers=2):
    torch.manual_seed(0)
    subsampling = Subsampling(20, 3)
    transformer = TransformerASR(
        n_tokens,
        subsampling.n_outputs,
        d_model=8,
        nhead=2,
        num_encoder_layers=layers,
        num_decoder_layers=1,
        d_ffn=16,
        dropout=0.0,
        kernel_size=5,
        encoder_module=encoder,
        attention_type=attention,
        normalize_before=True,
        causal=False,
    )
    return RecognitionNetwork(
        Fbank(sample_rate=8000, n_fft=256, n_mels=20, win_length=32, hop_length=16),
        128,
        InputNormalization(norm_type="sentence", std_norm=False),
        subsampling,
        transformer,
        8,
        n_tokens,
    ).eval()


# ------------------------------------------------------------------ network


@pytest.mark.parametrize(
    "encoder, attention", [("conformer", "RelPosMHAXL"), ("transformer", "regularMHA")]
)
def test_what_an_utterance_gets_does_not_depend_on_its_batch(encoder, attention):
    model = network(encoder, attention)
    lengths = torch.tensor([8000, 3333, 5121, 1200])
    generator = torch.Generator().manual_seed(1)
    signals = torch.zeros(4, 9000)
    for row, n in zip(signals, lengths):
        row[:n] = 0.1 * torch.randn(int(n), generator=generator)
    tokens = torch.tensor([[2, 4, 5, 6], [2, 5, 0, 0], [2, 4, 4, 0], [2, 6, 0, 0]])
    together = model(signals, lengths, tokens)
    for item, n in enumerate(lengths.tolist()):
        count = int((tokens[item] != 0).sum())
        alone = model(signals[item : item + 1, :n], None, tokens[item : item + 1, :count])
        frames = alone.ctc.shape[1]
        assert together.frames[item] == frames
        torch.testing.assert_close(
            together.ctc[item, :frames], alone.ctc[0], atol=2e-5, rtol=0
        )
        torch.testing.assert_close(
            together.attention[item, :count], alone.attention[0], atol=2e-5, rtol=0
        )


def test_every_parameter_learns():
    model = network()
    signals = torch.randn(2, 6000)
    signals[1, 4000:] = 0
    out = model(signals, torch.tensor([6000, 4000]), torch.tensor([[2, 4, 5], [2, 4, 0]]))
    targets = torch.tensor([[4, 5, 3], [4, 3, 0]])
    losses = attention_losses(out.attention, targets) + ctc_losses(
        out.ctc, targets, out.frames, torch.tensor([3, 2])
    )
    losses.sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Added to every score of a query alike, the bias of the keys has no effect.
    assert not [name for name in without if "key_proj" not in name], without


def test_subsampling_sees_only_frames_that_exist():
    subsampling = Subsampling(20, 3)
    for frames in (7, 8, 30, 41):
        count = subsampling(torch.randn(1, frames, 20)).shape[1]
        assert count == subsampling.count_frames(frames)


# ------------------------------------------------------------------ losses


def test_ctc_of_padded_batches_is_that_of_each_alone():
    log_probabilities = torch.randn(2, 9, 6).log_softmax(-1)
    targets = torch.tensor([[4, 4, 5], [5, 0, 0]])
    frames, count = torch.tensor([9, 6]), torch.tensor([3, 1])
    together = ctc_losses(log_probabilities, targets, frames, count)
    for item in range(2):
        part = slice(item, item + 1)
        alone = ctc_losses(
            log_probabilities[part, : frames[item]],
            targets[part, : count[item]],
            frames[part],
            count[part],
        )
        torch.testing.assert_close(together[item], alone[0])


def test_ctc_is_infinite_where_nothing_can_be_aligned():
    log_probabilities = torch.zeros(1, 4, 5).log_softmax(-1)
    targets = torch.tensor([[4, 4, 4]])  # needs five frames
    assert ctc_losses(
        log_probabilities, targets, torch.tensor([4]), torch.tensor([3])
    ).isinf()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_attention_loss_is_the_divergence_it_says(smoothing):
    log_probabilities = torch.randn(2, 3, 6, dtype=torch.float64).log_softmax(-1)
    targets = torch.tensor([[4, 5, 3], [5, 3, 0]])
    losses = attention_losses(log_probabilities, targets, smoothing)
    for item, count in enumerate((3, 2)):
        expected = 0.0
        for step in range(count):
            wanted = torch.full((6,), smoothing / 5, dtype=torch.float64)
            wanted[targets[item, step]] = 1 - smoothing
            terms = wanted * (wanted.log() - log_probabilities[item, step])
            expected += terms[wanted > 0].sum()
        torch.testing.assert_close(losses[item], expected)


# ------------------------------------------------------------------ tokens


@pytest.mark.parametrize(
    "kind, size", [("char", 40), ("unigram", 30), ("bpe", 30), ("word", 40)]
)
def test_text_comes_back(tmp_path, kind, size):
    tokens = Tokens.train(SENTENCES, tmp_path / "t.model", size, kind)
    for sentence in SENTENCES:
        assert tokens.decode(tokens.encode(sentence)) == sentence
        assert tokens.unknown(sentence) == []
    assert len(tokens) <= size


def test_the_same_transcripts_give_the_same_file(tmp_path):
    first = Tokens.train(SENTENCES, tmp_path / "a.model", 30)
    second = Tokens.train(SENTENCES[::-1] * 2, tmp_path / "b.model", 30)
    assert first.path.read_bytes() == second.path.read_bytes()


@given(text=st.text(max_size=30))
@settings(max_examples=15, deadline=None)
def test_any_text_is_encoded_and_what_is_unknown_is_named(text, tokens):
    numbers = tokens.encode(text)
    assert all(0 <= n < len(tokens) for n in numbers)
    assert bool(tokens.unknown(text)) == (1 in numbers)
    tokens.decode(numbers)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return Tokens.train(SENTENCES, tmp_path_factory.mktemp("t") / "t.model", 40, "char")


@pytest.mark.parametrize(
    "sentences, size, kind, message",
    [
        (["", ""], 30, "char", "no transcripts"),
        (SENTENCES, 6, "unigram", "n_tokens: 6"),
        (SENTENCES, 30, "words", "token_type: is 'words'; expected one of: unigram"),
    ],
)
def test_what_cannot_be_learnt_is_said(tmp_path, sentences, size, kind, message):
    with pytest.raises(UserError, match=message):
        Tokens.train(sentences, tmp_path / "t.model", size, kind)
    assert not list(tmp_path.iterdir())


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "t.model").write_bytes(b"not a model")
    for name in ("t.model", "missing.model"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            Tokens(tmp_path / name)


def test_a_file_of_tokens_that_are_no_text_is_refused(tmp_path):
    """Sentencepiece loads it, and fails in the first sentence that the token is in."""
    path = tmp_path / "t.model"
    whole = Tokens.train(SENTENCES, path, 40, "char").path.read_bytes()
    piece = b"\x0a\x01o"  # protobuf: field 1 of one byte
    assert whole.count(piece) == 1
    path.write_bytes(whole.replace(piece, b"\x0a\x01\xff"))
    with pytest.raises(UserError, match="t.model: is damaged, .* UTF-8; .* learn it again"):
        Tokens(path)

"""Recognition of speech, built of SpeechBrain's parts: tokens, network, losses, search.

The modules are called so that what an utterance gets does not depend on what else is in its
batch.

Axes: B batch, T samples, L frames, F mel bands, D model size, U tokens, V vocabulary.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import sentencepiece
import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder
from speechbrain.nnet.linear import Linear
from speechbrain.nnet.losses import kldiv_loss
from torch import nn

from unified_se_ss.errors import UserError
from unified_se_ss.files import atomic_write
from unified_se_ss.padding import real_elements

# SpeechBrain's decoder gives PyTorch a bool and a float mask, which it adds up rightly.
warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")

TOKEN_TYPES = ("unigram", "bpe", "char", "word")
BLANK, UNKNOWN, BEGIN, END = range(4)


class Tokens:
    """Pieces of text by number, from a sentencepiece model as :meth:`train` writes it.

    The first four numbers are not text: ``BLANK`` (of CTC; pads too), ``UNKNOWN``,
    ``BEGIN`` and ``END`` of a sentence. A file that is no such model, or damaged, raises
    UserError.

    Example
    -------
    >>> path = Path(getfixture("tmpdir")) / "tokens.model"
    >>> tokens = Tokens.train(["the old man", "a dog", "the dog"], path, 20, "char")
    >>> tokens.decode(tokens.encode("the old dog"))
    'the old dog'
    >>> tokens.unknown("the old cat")
    ['c']
    """

    def __init__(self, path):
        self.path = Path(path)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{path}: cannot be read as a sentencepiece model ({error})"
            ) from error
        special = self._processor
        found = (special.pad_id(), special.unk_id(), special.bos_id(), special.eos_id())
        if found != (BLANK, UNKNOWN, BEGIN, END):
            raise UserError(
                f"{path}: pad, unknown, begin and end are the tokens {found}; expected "
                f"{(BLANK, UNKNOWN, BEGIN, END)}, as this project trains its tokenizers"
            )
        try:
            self._processor.IdToPiece(list(range(len(self))))
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: is damaged, it holds tokens that are no text in UTF-8; get it "
                "again, or delete it in a run's folder for the run to learn it again"
            ) from error

    @classmethod
    def train(cls, transcripts, path, size: int, kind: str = "unigram") -> Tokens:
        """Learn the tokens of transcripts, write them to a file, and load it.

        `size` includes the four special ones and is reached only if the transcripts have so many;
        `kind` is one of ``TOKEN_TYPES``. UserError if there is no text, or it has more characters than
        `size` tokens can hold.
        """
        if kind not in TOKEN_TYPES:
            raise UserError(
                f"token_type: is '{kind}'; expected one of: {', '.join(TOKEN_TYPES)}"
            )
        transcripts = sorted(set(transcripts) - {""})
        if not transcripts:
            raise UserError("the training set has no transcripts to learn tokens from")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(transcripts),
                model_writer=model,
                vocab_size=size,
                model_type=kind,
                character_coverage=1.0,
                hard_vocab_limit=False,
                use_all_vocab=kind in ("char", "word"),
                pad_id=BLANK,
                unk_id=UNKNOWN,
                bos_id=BEGIN,
                eos_id=END,
                normalization_rule_name="identity",
                num_threads=1,  # the same tokens on every machine
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"n_tokens: {size} tokens ({kind}) cannot be learnt from "
                f"{len(transcripts)} different transcripts: {reason}"
            ) from error
        atomic_write(path, model.getvalue())
        return cls(path)

    def __len__(self):
        return self._processor.GetPieceSize()

    def encode(self, text: str) -> list[int]:
        """Numbers of the pieces of a text."""
        return self._processor.EncodeAsIds(text)

    def decode(self, numbers) -> str:
        """The text of pieces.

        Special ones are left out, and numbers beyond them all: a network may have more outputs
        than the transcripts had tokens to learn.
        """
        return self._processor.DecodeIds([int(n) for n in numbers if END < n < len(self)])

    def unknown(self, text: str) -> list[str]:
        """Characters of a text that no token stands for, each once."""
        pieces = zip(self.encode(text), self._processor.EncodeAsPieces(text))
        return list(dict.fromkeys(p.strip("▁") for n, p in pieces if n == UNKNOWN))


class Recognised(NamedTuple):
    """Output of the recogniser for a batch.

    Arguments
    ---------
    encoded : torch.Tensor
        The encoder's output, [B, L, D].
    frames : torch.Tensor
        Real frames of each utterance, [B], on the CPU.
    ctc : torch.Tensor
        Log probabilities of tokens in every frame, [B, L, V].
    attention : torch.Tensor or None
        Log probabilities of each next token, [B, U, V]; None without tokens.
    """

    encoded: torch.Tensor
    frames: torch.Tensor
    ctc: torch.Tensor
    attention: torch.Tensor | None


class Subsampling(nn.Module):
    """Two strided convolutions: of four frames, one is left.

    Nothing is padded: each output sees seven frames, all of which exist.

    Source: Gulati et al., arXiv 2005.08100, as ESPnet's Conv2dSubsampling.

    Example
    -------
    >>> Subsampling(80, 16)(torch.randn(2, 100, 80)).shape
    torch.Size([2, 24, 304])
    """

    def __init__(self, n_mels: int, channels: int):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, channels, 3, 2),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 2),
            nn.ReLU(),
        )
        self.n_outputs = channels * self.count_frames(n_mels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, L, F] to [B, L / 4, channels * F / 4]."""
        return self.convolutions(features.unsqueeze(1)).transpose(1, 2).flatten(2)

    @staticmethod
    def count_frames(frames):
        """Frames that are left of so many, a number or a tensor of them."""
        return ((frames - 1) // 2 - 1) // 2


class RecognitionNetwork(nn.Module):
    """From signals to log probabilities of tokens.

    Arguments
    ---------
    features : torch.nn.Module
        Signals [B, T] to log-mel bands [B, L, F], such as SpeechBrain's ``Fbank``.
    hop : int
        Its hop in samples.
    normalisation : torch.nn.Module
        Of features [B, L, F] with relative lengths [B], such as SpeechBrain's
        ``InputNormalization`` by sentence.
    subsampling : Subsampling
        Makes fewer frames of them.
    transformer : speechbrain.lobes.models.transformer.TransformerASR.TransformerASR
        Encoder and decoder; its ``input_size`` is ``subsampling.n_outputs``.
    d_model, n_tokens : int
        Its size D and the vocabulary V.

    Source of the published sizes: YUCHEN005/Gradient-Remedy, train_gradient_remedy.yaml.
    """

    def __init__(
        self, features, hop, normalisation, subsampling, transformer, d_model, n_tokens
    ):
        super().__init__()
        self.features, self.hop = features, hop
        self.normalisation = normalisation
        self.subsampling = subsampling
        self.transformer = transformer
        self.ctc = Linear(n_neurons=n_tokens, input_size=d_model)
        self.attention = Linear(n_neurons=n_tokens, input_size=d_model)
        self._keep_padding_out()

    def forward(self, signals, lengths=None, tokens=None) -> Recognised:
        """Encode signals, [B, T], zero in the padding, and predict tokens.

        `lengths`, [B], on the CPU, are real samples; `tokens`, [B, U], the sentences so far from
        the token that begins them, padded with 0.
        """
        features, frames = self.analyse(signals, lengths)
        features = self.subsampling(features)
        frames = self.subsampling.count_frames(frames)
        relative = (frames / features.shape[1]).to(features.device, non_blocking=True)
        self._real = real_elements(frames, features.shape[1], features.device)
        attention = None
        if tokens is None:
            encoded = self.transformer.encode(features, relative)
        else:
            encoded, decoded = self.transformer(features, tokens, relative, pad_idx=0)
            attention = self.attention(decoded).float().log_softmax(-1)
        ctc = self.ctc(encoded).float().log_softmax(-1)
        return Recognised(encoded, frames, ctc, attention)

    def analyse(self, signals, lengths=None):
        """Normalised log-mel bands [B, L, F], and the real frames of each item."""
        if lengths is None:
            lengths = torch.full((len(signals),), signals.shape[-1])
        frames = lengths.cpu() // self.hop + 1
        with torch.autocast(signals.device.type, enabled=False):
            features = self.features(signals)
            relative = (frames / features.shape[1]).to(features.device, non_blocking=True)
            features = self.normalisation(features, relative)
        real = real_elements(frames, features.shape[1], features.device).unsqueeze(-1)
        return torch.where(real, features, 0.0), frames

    def count_frames(self, samples):
        """Frames that CTC aligns with, of so many samples."""
        return self.subsampling.count_frames(samples // self.hop + 1)

    def _keep_padding_out(self) -> None:
        """Silence what follows an utterance before each depthwise convolution.

        SpeechBrain's Conformer masks padding behind the convolution only, so up to half a kernel
        of it reaches the last frames.
        """
        for layer in self.transformer.encoder.layers:
            if hasattr(layer, "convolution_module"):
                layer.convolution_module.conv.register_forward_pre_hook(self._silence)

    def _silence(self, module, inputs):
        """The inputs [B, D, L] of a convolution, zero in the padding."""
        return (torch.where(self._real.unsqueeze(1), inputs[0], 0.0),)


def ctc_losses(
    log_probabilities: torch.Tensor,
    targets: torch.Tensor,
    frames: torch.Tensor,
    n_tokens: torch.Tensor,
) -> torch.Tensor:
    """Negative log probability of the tokens in any alignment, in nats, [B].

    From log probabilities, [B, L, V], tokens, [B, U], and the real frames and tokens of each
    utterance, [B], on the CPU. Infinite where a transcript has more tokens than can be aligned
    (one frame each, and one more between two that are equal).

    Source: Graves et al., 2006; not divided by the number of tokens, as ESPnet does it.

    Example
    -------
    >>> uniform = torch.full((1, 2, 4), 0.25).log()
    >>> one = torch.tensor([1])
    >>> ctc_losses(uniform, torch.tensor([[3]]), 2 * one, one).exp()  # 16 paths, 3 of them
    tensor([5.3333])
    """
    return torch.nn.functional.ctc_loss(
        log_probabilities.float().transpose(0, 1),
        targets,
        frames,
        n_tokens,
        blank=BLANK,
        reduction="none",
    )


def attention_losses(
    log_probabilities: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.1
) -> torch.Tensor:
    """Divergence of the decoder's predictions from the smoothed targets, in nats.

    From log probabilities, [B, U, V], and tokens with the end of the sentence, [B, U], padded
    with ``BLANK``, to the sum over each utterance's tokens, [B]. `smoothing` is the probability
    that is taken from the target and given to all other tokens.

    Source: Szegedy et al., arXiv 1512.00567, as SpeechBrain's ``kldiv_loss``; not divided by
    the number of tokens (length_normalized_loss: false in arXiv 2302.11362).

    Example
    -------
    >>> uniform = torch.full((1, 3, 4), 0.25).log()
    >>> attention_losses(uniform, torch.tensor([[3, 2, 0]]), 0.0) / torch.tensor(4.0).log()
    tensor([2.])
    """
    if not smoothing:
        chosen = log_probabilities.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return -torch.where(targets == BLANK, 0.0, chosen).sum(-1)
    losses = kldiv_loss(
        log_probabilities,
        targets,
        label_smoothing=smoothing,
        pad_idx=BLANK,
        reduction="none",
    )
    return losses.view(len(targets), -1).sum(-1)


def greedy_words(recognised, tokens) -> list[str]:
    """The likeliest token of every frame, repeats and blanks taken out, as one text per utterance."""
    best = recognised.ctc.argmax(-1).cpu()
    texts = []
    for path, count in zip(best, recognised.frames.tolist()):
        path = torch.unique_consecutive(path[:count])
        texts.append(tokens.decode(path[path != BLANK].tolist()))
    return texts


class BeamSearch:
    """Joint search: attention, CTC and, where there is one, a language model.

    Arguments
    ---------
    beam_size : int
        Hypotheses that are followed.
    ctc_weight : float
        Share of CTC in the score, 0 to 1; attention has the rest.
    language_model : speechbrain.decoders.scorer.BaseScorerInterface, optional
        A scorer that takes and gives tokens of the same kind, such as SpeechBrain's
        ``TransformerLMScorer``.
    language_weight : float
        Factor of its score.

    Source of the published values (60, 0.3, 0.3): arXiv 2302.11362.
    """

    def __init__(
        self,
        network,
        tokens,
        beam_size: int = 60,
        ctc_weight: float = 0.3,
        language_model=None,
        language_weight: float = 0.3,
    ):
        self.network, self.tokens = network, tokens
        scorers, weights = [], {}
        if ctc_weight:
            scorers.append(CTCScorer(network.ctc, blank_index=BLANK, eos_index=END))
            weights["ctc"] = ctc_weight
        if language_model is not None:
            scorers.append(language_model)
            weights["transformerlm"] = language_weight
        self._searcher = S2STransformerBeamSearcher(
            modules=[network.transformer, network.attention],
            bos_index=BEGIN,
            eos_index=END,
            min_decode_ratio=0.0,
            max_decode_ratio=1.0,
            beam_size=min(beam_size, len(tokens)),
            scorer=ScorerBuilder(weights, scorers) if scorers else None,
            using_eos_threshold=False,
            length_normalization=True,
        )

    @torch.no_grad()
    def __call__(self, recognised) -> list[str]:
        """The best text of each utterance of a ``Recognised`` batch without tokens."""
        texts = []
        for encoded, count in zip(recognised.encoded, recognised.frames.tolist()):
            # One at a time: hypotheses of one batch are searched to one length.
            whole = torch.ones(1, device=encoded.device)
            best, *_ = self._searcher(encoded[None, :count].float(), whole)
            texts.append(self.tokens.decode(best[0]))
        return texts

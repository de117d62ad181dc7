"""From what the network says to words: quickly by CTC, or by a joint beam search."""

from __future__ import annotations

import torch
from speechbrain.decoders import S2STransformerBeamSearcher
from speechbrain.decoders.scorer import CTCScorer, ScorerBuilder

from unified_se_ss.recognition.tokens import BEGIN, BLANK, END


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

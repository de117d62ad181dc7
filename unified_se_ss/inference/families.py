"""Kinds of models: all that differs between them. A new kind is one entry of KINDS.

Axes: B batch, T samples, J sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from unified_se_ss.networks import BinauralNetwork, GSENet, UnifiedNetwork


@dataclass(frozen=True)
class ModelFamily:
    """Properties that the models of one recipe have in common.

    Arguments
    ---------
    network : type
        Class of the outermost network.
    best : str
        What the recipe chooses its checkpoint by; the larger the better.
    properties : callable
        From the network, those of :class:`~unified_se_ss.inference.Model` that follow
        from it: ``n_sources``, ``channels``, ``causal``, ``minimum_samples``,
        ``can_enhance``, and ``ears`` where a source has several channels.
    forward : callable
        ``(network, mixture, lengths)`` to sources [B, J, T] (None for a model that
        only enhances) and enhanced mixture [B, T] (None for one that only separates).
    enhance : callable, optional
        The same arguments to the enhanced mixture alone, without the work for sources;
        by default the second of `forward`.
    shape_check : callable, optional
        From a network whose weights are known to fit: sends a short signal through its
        modules, where `forward` does not go through all.
    parts : tuple of str
        A run's modules: the network, or those that are arguments of `network`; the
        first must be there.
    pipeline : str
        Class of :mod:`~unified_se_ss.inference.pipeline` that takes recordings.
    evaluation : str
        A name in ``EVALUATIONS`` of :mod:`unified_se_ss.evaluate_model`.
    recognises : bool
        Whether there are a tokenizer and a search beside the network.
    """

    network: type[nn.Module]
    best: str
    properties: Callable
    forward: Callable
    enhance: Callable | None = None
    shape_check: Callable | None = None
    parts: tuple[str, ...] = ("network",)
    pipeline: str = "Separator"
    evaluation: str = "separation"
    recognises: bool = False


def _unified_properties(network) -> dict:
    return {
        "n_sources": network.separator.n_sources,
        "channels": 1,
        "causal": False,  # global norms, both directions
        "minimum_samples": network.encoder.convolution.kernel_size[0],
        "can_enhance": network.enhancer is not None,
    }


def _unified_forward(network, mixture, lengths):
    output = network(mixture, lengths)
    return output.sources, output.enhanced


def _gsenet_properties(network) -> dict:
    return {
        "n_sources": 0,
        "channels": 2,  # raw reference microphone, beamformer
        "causal": True,
        "minimum_samples": 1,
        "can_enhance": True,
    }


def _binaural_properties(network) -> dict:
    return {
        "n_sources": network.n_sources,
        "channels": 2,  # left ear, right ear
        "ears": 2,
        "causal": network.causal,
        "minimum_samples": 1,
        "can_enhance": False,
    }


class RecognitionSystem(nn.Module):
    """A recogniser and, if there is one, its front, so that they are weights of one file."""

    def __init__(self, recogniser: nn.Module, front: nn.Module | None = None):
        super().__init__()
        self.recogniser, self.front = recogniser, front
        spectrum = recogniser.features.compute_STFT
        if spectrum.hop_length != recogniser.hop:
            raise ValueError(
                f"hop: is {recogniser.hop} samples; the features' is {spectrum.hop_length}"
            )

    def forward(self, noisy: torch.Tensor, lengths=None, tokens=None):
        enhanced = self.enhance(noisy, lengths)
        signals = noisy if enhanced is None else enhanced
        return enhanced, self.recogniser(signals, lengths, tokens)

    def enhance(self, noisy: torch.Tensor, lengths=None):
        """Signals [B, T] through the front; None without one."""
        return None if self.front is None else self.front(noisy, lengths).signal

    @property
    def n_tokens(self) -> int:
        """Tokens that the recogniser knows."""
        return self.recogniser.attention.w.out_features

    @property
    def minimum_samples(self) -> int:
        """The fewest samples in which the recogniser has a frame."""
        samples = self.recogniser.hop
        while self.recogniser.count_frames(samples) < 1:
            samples += self.recogniser.hop
        return samples

    @property
    def maximum_samples(self) -> int:
        """The most whose frames and tokens all have positions.

        SpeechBrain's positions end with its transformer's ``max_length``.
        """
        modules = self.recogniser.transformer.modules()
        positions = min(m.max_len for m in modules if hasattr(m, "max_len"))
        samples = 4 * positions * self.recogniser.hop
        while self.recogniser.count_frames(samples) > positions:
            samples -= self.recogniser.hop
        return samples


def _recogniser_properties(network) -> dict:
    return {
        "n_sources": 0,
        "channels": 1,
        "causal": False,  # both directions, attention
        "minimum_samples": 1,
        "can_enhance": network.front is not None,
    }


def _recogniser_shape_check(network):
    signal = torch.zeros(1, 2 * network.minimum_samples)
    network(signal, None, torch.tensor([[1, network.n_tokens - 1]]))


# By the name that config.json gives as "kind".
KINDS = {
    "unified": ModelFamily(
        UnifiedNetwork,
        best="si_snr_i",
        properties=_unified_properties,
        forward=_unified_forward,
        enhance=UnifiedNetwork.enhance,
    ),
    "gsenet": ModelFamily(
        GSENet,
        best="si_snr_i",
        properties=_gsenet_properties,
        forward=lambda network, mixture, lengths: (None, network(mixture, lengths)),
        pipeline="GuidedEnhancer",
        evaluation="guided",
    ),
    "binaural": ModelFamily(
        BinauralNetwork,
        best="snr_i",
        properties=_binaural_properties,
        forward=lambda network, mixture, lengths: (network(mixture, lengths), None),
        pipeline="BinauralSeparator",
        evaluation="binaural",
    ),
    "recogniser": ModelFamily(
        RecognitionSystem,
        best="accuracy",
        properties=_recogniser_properties,
        forward=lambda network, mixture, lengths: (None, network.enhance(mixture, lengths)),
        shape_check=_recogniser_shape_check,
        parts=("recogniser", "front"),
        pipeline="Recognizer",
        evaluation="recognition",
        recognises=True,
    ),
}

"""Kinds of models: what each recipe's networks have in common.

Axes: B batch, T samples, J sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ModelFamily:
    """What the models of one recipe have in common.

    Arguments
    ---------
    network : str
        Class of the outermost network, a name in
        :data:`~unified_se_ss.inference.configuration.NETWORKS`.
    best : str
        What the recipe chooses its checkpoint by; the larger the better.
    facts : callable
        From the network, what follows from it of
        :class:`~unified_se_ss.inference.Model`:
        ``n_sources``, ``channels``, ``causal``, ``minimum_samples``, ``can_enhance``,
        and ``ears`` where a source has several channels.
    both : callable
        ``(network, mixture, lengths)`` to sources [B, J, T] (None for a model that
        only enhances) and enhanced mixture [B, T] (None for one that only separates).
    enhance : callable, optional
        The same arguments to the enhanced mixture alone, without the work for sources;
        none where no model of the kind can enhance.
    shape_check : callable, optional
        From the network alone: whatever its modules do with a short signal, where
        `both` is not all of it. Is called of a network with memory, of which the
        weights are known to fit.
    recognises : bool
        Whether there are a tokenizer and a search beside the network.
    """

    network: str
    best: str
    facts: Callable
    both: Callable
    enhance: Callable | None = None
    shape_check: Callable | None = None
    recognises: bool = False


def _unified_facts(network) -> dict:
    return {
        "n_sources": network.separator.n_sources,
        "channels": 1,
        "causal": False,  # global norms, both directions
        "minimum_samples": network.encoder.convolution.kernel_size[0],
        "can_enhance": network.enhancer is not None,
    }


def _unified_both(network, mixture, lengths):
    output = network(mixture, lengths)
    return output.sources, output.enhanced


def _unified_enhance(network, mixture, lengths):
    """The front of the network: what is left out is most of the work."""
    frames = network.real_frames(mixture, lengths)
    h = network.encoder(mixture)
    h = h * network.enhancer(h, frames).squeeze(1)
    if frames is not None:
        h = network.without_padding(h, frames)
    return network.decoder(h, mixture.shape[-1])


def _gsenet_facts(network) -> dict:
    return {
        "n_sources": 0,
        "channels": 2,  # raw reference microphone, beamformer
        "causal": True,
        "minimum_samples": 1,
        "can_enhance": True,
    }


def _gsenet_both(network, mixture, lengths):
    return None, network(mixture, lengths)


def _gsenet_enhance(network, mixture, lengths):
    return network(mixture, lengths)


def _binaural_facts(network) -> dict:
    return {
        "n_sources": network.n_sources,
        "channels": 2,  # left ear, right ear
        "ears": 2,
        "causal": network.causal,
        "minimum_samples": 1,
        "can_enhance": False,
    }


def _binaural_both(network, mixture, lengths):
    return network(mixture, lengths), None


def _recogniser_facts(network) -> dict:
    return {
        "n_sources": 0,
        "channels": 1,
        "causal": False,  # both directions, attention
        "minimum_samples": 1,
        "can_enhance": network.front is not None,
    }


def _recogniser_both(network, mixture, lengths):
    return None, network.enhance(mixture, lengths)


def _recogniser_enhance(network, mixture, lengths):
    return network.enhance(mixture, lengths)


def _recogniser_try_out(network):
    signal = torch.zeros(1, 2 * network.minimum_samples)
    network(signal, None, torch.tensor([[1, network.n_tokens - 1]]))


# Models by the name that their config.json gives as "kind". A new recipe is one entry.
KINDS = {
    "unified": ModelFamily(
        "UnifiedNetwork", "si_snr_i", _unified_facts, _unified_both, _unified_enhance
    ),
    "gsenet": ModelFamily(
        "GSENet", "si_snr_i", _gsenet_facts, _gsenet_both, _gsenet_enhance
    ),
    "binaural": ModelFamily("BinauralNetwork", "snr_i", _binaural_facts, _binaural_both),
    "recogniser": ModelFamily(
        "RecognitionSystem",
        "accuracy",
        _recogniser_facts,
        _recogniser_both,
        _recogniser_enhance,
        _recogniser_try_out,
        recognises=True,
    ),
}

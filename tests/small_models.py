"""Small networks of every sort that is shipped, for tests of what is done with them."""

from functools import partial

import numpy as np
import torch

from unified_se_ss.inference import Model
from unified_se_ss.inference.models import build_network

SEQUENCE_MODELS = {
    "dprnn": {"class": "Recurrent", "arguments": {"n_features": 12, "hidden": 10}},
    "sepformer": {
        "class": "Transformer",
        "arguments": {"n_features": 12, "layers": 2, "heads": 3, "feed_forward": 20},
    },
}


def masks(sort, n_sources, blocks):
    """The description of a module that gives masks."""
    model = {**SEQUENCE_MODELS[sort], "partial": True}
    arguments = {
        "intra": model,
        "inter": model,
        "n_basis": 32,
        "n_features": 12,
        "n_sources": n_sources,
        "blocks": blocks,
        "chunk_length": 10,
        "linear_after": sort == "dprnn",
    }
    return {"class": "DualPath", "arguments": arguments}


def configuration(sort="dprnn", n_sources=2, use_se=True, kernel_size=16, stride=8):
    """The configuration of a small model, as ``config.json`` holds it."""
    window = {"n_basis": 32, "kernel_size": kernel_size, "stride": stride}
    network = {
        "class": "UnifiedNetwork",
        "arguments": {
            "encoder": {"class": "Encoder", "arguments": window},
            "enhancer": masks(sort, 1, 1),
            "separator": masks(sort, n_sources, 2),
            "decoder": {"class": "Decoder", "arguments": window},
            "use_se": use_se,
        },
    }
    return {"format": 1, "kind": "unified", "sample_rate": 8000, "network": network}


def small_model(*args, **kwargs):
    """A small model whose every weight matters (norms start at 1 and 0, biases at 0)."""
    described = configuration(*args, **kwargs)
    network = build_network(described["network"])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    make = partial(Model, network, "unified", 8000, "cpu")
    return make(configuration=described)


def _of_kind(kind, sample_rate, class_name, **arguments):
    described = {"class": class_name, "arguments": arguments}
    torch.manual_seed(0)
    network = build_network(described)
    told = {"format": 1, "kind": kind, "sample_rate": sample_rate, "network": described}
    return Model(network, kind, sample_rate, "cpu", configuration=told)


def small_binaural(variant="mimo", n_sources=2, **arguments):
    """A binaural model of random weights, 8 kHz."""
    sizes = {"n_basis": 16, "n_features": 8, "hidden": 12, "blocks": 3, "repeats": 1}
    sizes |= {"variant": variant, "n_sources": n_sources, **arguments}
    return _of_kind("binaural", 8000, "BinauralNetwork", **sizes)


def small_gsenet():
    """A GSENet of random weights, 16 kHz."""
    blocks = [[4, 8, 2, 2, True], [8, 8, 1, 3, False]]
    return _of_kind(
        "gsenet", 16000, "GSENet", blocks=blocks, bottleneck=6, head="mask_both"
    )


def noise(channels=2, samples=6000, seed=0):
    """White noise, float32 [C, T]."""
    signal = 0.1 * np.random.default_rng(seed).standard_normal((channels, samples))
    return signal.astype(np.float32)

"""Small networks of every sort that is shipped, for tests of what is done with them."""

from functools import partial

import torch

from unified_se_ss.inference import Model
from unified_se_ss.inference.configuration import build_network

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

"""This project's dual-path networks against SpeechBrain's, with the same weights.

    python benchmarks/dual_path.py [--seconds 2] [--repeats 3]

Forward and backward of the separation modules of the published sizes on one item.
Both run in turn in one process, after a warm-up; medians are compared. Also compared:
how far the masks are apart, and how many bytes are kept for the backward pass.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hyperpyyaml import load_hyperpyyaml  # noqa: E402
from speechbrain.lobes.models import dual_path as speechbrain_dual_path  # noqa: E402

from unified_se_ss.networks.speechbrain_weights import to_speechbrain  # noqa: E402
from unified_se_ss.recipe import keep_freed_memory  # noqa: E402

RECIPES = {
    "DPRNN": "hparams/libri2mix_noisy_dprnn.yaml",
    "SepFormer": "hparams/libri2mix_noisy.yaml",
}


def ours(kind):
    """The separation module of a published recipe."""
    with open(ROOT / RECIPES[kind], encoding="utf-8") as file:
        overrides = {"data_folder": "unused", "output_folder": tempfile.mkdtemp()}
        return load_hyperpyyaml(file, overrides)["separator"]


def theirs(kind, network):
    """SpeechBrain's module of the same sizes and weights."""

    def model():
        if kind == "DPRNN":
            return speechbrain_dual_path.SBRNNBlock(256, 256, 1, bidirectional=True)
        return speechbrain_dual_path.SBTransformerBlock(
            8, 256, 8, 1024, dropout=0.0, use_positional_encoding=True, norm_before=True
        )

    module = speechbrain_dual_path.Dual_Path_Model(
        256,
        256,
        model(),
        model(),
        num_layers=len(network.blocks),
        norm="ln",
        K=250,
        num_spks=2,
        linear_layer_after_inter_intra=kind == "DPRNN",
    )
    module.load_state_dict(to_speechbrain(network.state_dict()), strict=False)
    return module


def seconds_of(network, x):
    """One forward and backward pass."""
    began = time.perf_counter()
    network(x).square().sum().backward()
    network.zero_grad()
    return time.perf_counter() - began


def kept_bytes(network, x):
    """Bytes of distinct memory that a forward pass keeps for the backward pass."""
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network(x)
    del output
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    return sum(size for place, size in storages.items() if place not in parameters)


def main():
    """Measure both kinds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the item")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    print(f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads")
    print(f"forward and backward of one item of {options.seconds:g} s at 8 kHz\n")
    print(
        f"{'module':<10} {'SpeechBrain':>12} {'ours':>9} {'speed':>7} {'kept':>7} {'error':>9}"
    )
    for kind in RECIPES:
        torch.manual_seed(0)
        network = ours(kind)
        reference = theirs(kind, network)
        x = torch.rand(1, 256, int(options.seconds * 1000) - 1)
        with torch.no_grad():
            expected = reference(x).transpose(0, 1)
            error = (network(x) - expected).norm() / expected.norm()
        memory = kept_bytes(network, x) / kept_bytes(reference, x)
        taken = {reference: [], network: []}
        for number in range(options.repeats + 1):
            for module, values in taken.items():
                value = seconds_of(module, x)
                if number:  # the first of each is warm-up
                    values.append(value)
        slow, fast = (statistics.median(values) for values in taken.values())
        print(
            f"{kind:<10} {slow:>10.2f} s {fast:>7.2f} s {slow / fast:>6.2f}x "
            f"{memory:>6.2f}x {error:>9.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()

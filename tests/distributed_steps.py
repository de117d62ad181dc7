"""A small unified network, trained for a few steps by one process or by one rank of two."""

from functools import partial

import torch

from train import UnifiedBrain
from unified_se_ss.data.dataset import Example, collate
from unified_se_ss.networks import Decoder, DualPath, Encoder, Recurrent, UnifiedNetwork

# Items of each rank at each step, and their lengths: uneven in both.
LENGTHS = [
    [[400, 231], [333]],
    [[170], [290, 260, 120]],
    [[222], [222]],
    [[350, 300], [90]],
]


def network():
    model = partial(Recurrent, n_features=12, hidden=8)
    masks = partial(
        DualPath,
        model,
        model,
        n_basis=16,
        n_features=12,
        chunk_length=10,
        linear_after=True,
    )
    return UnifiedNetwork(
        Encoder(16, 16, 8),
        masks(n_sources=2, blocks=2),
        Decoder(16, 16, 8),
        masks(n_sources=1, blocks=1),
    )


def batches(rank, world_size):
    for step, ranks in enumerate(LENGTHS):
        mine = ranks if world_size == 1 else [ranks[rank]]
        examples = []
        for number, lengths in enumerate(mine):
            for item, length in enumerate(lengths):
                place = rank if world_size > 1 else number
                generator = torch.Generator().manual_seed(1000 * step + 10 * place + item)
                sources = torch.randn(2, length, generator=generator, dtype=torch.float64)
                noise = torch.randn(length, generator=generator, dtype=torch.float64)
                examples.append(
                    Example(f"{step}-{place}-{item}", sources.sum(0) + noise, sources)
                )
        yield collate64(examples)


def collate64(examples):
    batch = collate(examples)
    for item, example in enumerate(examples):
        batch.mixture = batch.mixture.double()
        batch.sources = batch.sources.double()
        length = int(batch.lengths[item])
        batch.mixture[item, :length] = example.mixture
        batch.sources[item, :, :length] = example.sources
    return batch


def train(rule, rank=0, world_size=1):
    """Weights after four steps, items kept of those in each batch, and the monitor's numbers."""
    torch.manual_seed(7 + rank)  # ranks start apart on purpose: rank 0's weights count
    brain = UnifiedBrain(
        modules={"network": network().double()},
        opt_class=lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=True),
        hparams={
            "shared_modules": ["network.encoder", "network.enhancer"],
            "rule": rule,
            "use_se": True,
            "weight_se": 0.1,
            "se_loss": "sum",
            # In the midst of what the items get, so that some are dropped.
            "loss_threshold": 26.0,
        },
        run_opts={"device": "cpu", "noprogressbar": True, "distributed_backend": "gloo"},
    )
    kept = []
    brain.on_fit_batch_end = lambda batch, outputs, losses, step: kept.append(
        (int(losses.main.items), len(batch))
    )
    brain.on_stage_end = lambda *_: None
    loader = torch.utils.data.DataLoader(list(batches(rank, world_size)), batch_size=None)
    brain.fit([1], loader)
    return {"state": brain.modules.state_dict(), "kept": kept, "read": brain.monitor.read()}

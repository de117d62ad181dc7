"""Options that change what training costs: the same outputs, gradients and loss curve."""

import copy
import functools

import pytest
import torch
from small_models import configuration
from speechbrain.utils import quirks
from torch.utils.data import DataLoader

from benchmarks.frame import peak_bytes
from train import UnifiedBrain
from unified_se_ss.data.dataset import Example, collate
from unified_se_ss.errors import UserError
from unified_se_ss.inference.models import build_network
from unified_se_ss.training import run_folder
from unified_se_ss.training.brain import TwoTaskBrain

CPU = torch.device("cpu")
SORTS = ["sepformer", "dprnn"]
EQUAL, UNEQUAL = [800, 800], [800, 555]
HPARAMS = {
    "shared_modules": ["network.encoder", "network.enhancer"],
    "rule": "project",
    "use_se": True,
    "weight_se": 0.1,
    "se_loss": "sum",
    "loss_threshold": None,
}


def network_of(sort, dtype=torch.float32):
    torch.manual_seed(3)
    return build_network(configuration(sort)["network"]).to(dtype)


def batch_of(lengths, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    sources = [torch.randn(2, n, generator=generator) for n in lengths]
    batch = collate([Example(str(n), s.sum(0) + 0.1, s) for n, s in enumerate(sources)])
    batch.mixture, batch.sources = batch.mixture.to(dtype), batch.sources.to(dtype)
    return batch


def loss_curve(
    sort, lengths=EQUAL, dtype=torch.float64, run_opts=None, note=lambda: None, **hparams
):
    """Main and auxiliary loss of each step, and the weights after the last."""
    network = network_of(sort, dtype)
    brain = UnifiedBrain(
        modules={"network": network},
        opt_class=lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
        hparams={**HPARAMS, **hparams},
        run_opts={"device": "cpu", "noprogressbar": True, **(run_opts or {})},
    )
    losses = []
    brain.on_losses = lambda batch, found: losses.append([x.total.item() for x in found])
    brain.on_gradients = lambda combined: note()
    brain.on_stage_end = lambda *_: None
    batches = [batch_of(lengths, seed, dtype) for seed in range(4)]
    brain.fit([1], DataLoader(batches, batch_size=None))
    weights = torch.cat([p.detach().flatten() for p in network.parameters()])
    return torch.tensor(losses, dtype=torch.float64), weights


# ------------------------------------------------------------------ activation checkpointing


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
@pytest.mark.parametrize("sort", SORTS)
def test_checkpointed_activations_take_the_same_steps(sort, lengths):
    """Two backward passes go through what was kept; rounding apart, nothing changes."""
    losses, weights = loss_curve(sort, lengths)
    again, their_weights = loss_curve(sort, lengths, activation_checkpointing=True)
    torch.testing.assert_close(losses, again, rtol=1e-12, atol=0)
    torch.testing.assert_close(weights, their_weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sort", SORTS)
def test_checkpointed_activations_take_less_memory(sort):
    network, batch = network_of(sort), batch_of([4000, 4000])

    def forward_and_backward():
        network(batch.mixture).sources.square().sum().backward()
        network.zero_grad()

    kept = peak_bytes(forward_and_backward, CPU)
    for part in (network.enhancer, network.separator):
        part.activation_checkpointing = True
    assert peak_bytes(forward_and_backward, CPU) < 0.75 * kept


def test_dropout_is_the_same_when_blocks_are_run_again():
    described = copy.deepcopy(configuration("sepformer")["network"])
    for part in ("enhancer", "separator"):
        arguments = described["arguments"][part]["arguments"]
        for model in ("intra", "inter"):
            arguments[model]["arguments"]["dropout"] = 0.5
    torch.manual_seed(3)
    network = build_network(described).double()
    batch, found = batch_of(EQUAL, dtype=torch.float64), []
    for checkpointing in (False, True):
        for part in (network.enhancer, network.separator):
            part.activation_checkpointing = checkpointing
        network.zero_grad()
        torch.manual_seed(5)
        network(batch.mixture).sources.square().sum().backward()
        found.append([p.grad.clone() for p in network.parameters()])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_it_is_off_by_default_and_changes_nothing_but_training():
    network = network_of("sepformer")
    assert not network.separator.activation_checkpointing
    with torch.no_grad():
        before = network(batch_of(EQUAL).mixture).sources
        network.separator.activation_checkpointing = True
        assert torch.equal(network(batch_of(EQUAL).mixture).sources, before)
    assert "checkpoint" not in " ".join(network.state_dict())


def test_a_network_that_cannot_says_so():
    with pytest.raises(UserError, match="activation_checkpointing"):
        TwoTaskBrain(
            modules={"layer": torch.nn.Linear(2, 2)},
            hparams={"activation_checkpointing": True},
            run_opts={"device": "cpu"},
        )


# ------------------------------------------------------------------ compile


@pytest.fixture
def graphs(monkeypatch):
    """Count what torch.compile makes; without inductor, which changes no graph."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    compiled = functools.partial(torch.compile, backend="aot_eager")

    def compile_without_mode(module, mode=None, **kwargs):
        return compiled(module, **kwargs)

    monkeypatch.setattr(torch, "compile", compile_without_mode)
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("sort", SORTS)
def test_a_compiled_network_takes_the_same_steps_with_one_set_of_graphs(sort, graphs):
    """Segments of one length: what was compiled at the first step serves all others."""
    losses, weights = loss_curve(sort, dtype=torch.float32)
    made, options = [], {"dtype": torch.float32, "run_opts": {"compile": True}}
    again, their_weights = loss_curve(sort, note=lambda: made.append(graphs()), **options)
    torch.testing.assert_close(losses, again, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights, their_weights, rtol=0, atol=2e-3)
    assert graphs() > 0
    assert len(set(made)) == 1, made


# ------------------------------------------------------------------ TF32


@pytest.fixture
def tf32():
    """Put back what torch may do."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    "products, convolutions, said",
    [
        (True, True, "TF32 in matrix products and convolutions and LSTMs"),
        (False, True, "TF32 in convolutions and LSTMs"),
        (False, False, "no TF32"),
    ],
)
def test_the_log_says_where_tf32_is_used(tf32, products, convolutions, said):
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
    assert run_folder._tf32() == said


@pytest.mark.parametrize("disabled, allowed", [("", True), ("allow_tf32", False)])
def test_speechbrain_allows_it_unless_told_not_to(tf32, monkeypatch, disabled, allowed):
    """As docs/speed.md says."""
    monkeypatch.setenv("SB_DISABLE_QUIRKS", disabled)
    for name in ("applied_quirks", "excluded_quirks"):
        monkeypatch.setattr(quirks, name, set())
    torch.backends.cuda.matmul.allow_tf32 = False
    quirks.apply_quirks()
    assert torch.backends.cuda.matmul.allow_tf32 is allowed

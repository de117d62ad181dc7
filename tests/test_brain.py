"""TwoTaskBrain: what a Brain promises, kept with two gradients; two ranks as one."""

import pytest
import speechbrain as sb
import torch
from distributed_steps import network as small_network
from distributed_steps import train
from forked_ranks import of_ranks
from host_reads import HostReads
from torch.utils.data import DataLoader

from unified_se_ss.errors import UserError
from unified_se_ss.gradients import TaskLoss, TwoTaskLosses
from unified_se_ss.training.brain import TwoTaskBrain, as_two_task_losses


class Pair(TwoTaskBrain):
    """A trunk that two heads share; batches are (input, scale of main, scale of auxiliary)."""

    def compute_forward(self, batch, stage):
        hidden = self.modules.trunk(batch[0]).tanh()
        return hidden, self.modules.head(hidden)

    def compute_objectives(self, predictions, batch, stage):
        hidden, output = predictions
        main = output.square().sum(1) * batch[1]
        auxiliary = (hidden - 1).square().sum(1) * batch[2]
        return TwoTaskLosses(TaskLoss.of(main), TaskLoss.of(auxiliary))


def batches(count, items=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    one = torch.ones((), dtype=dtype)
    return [
        (torch.randn(items, 4, generator=generator, dtype=dtype), one, one)
        for _ in range(count)
    ]


def loader(data):
    return DataLoader(data, batch_size=None)


def make(dtype=torch.float64, optimizer=None, checkpointer=None, modules=None, **options):
    torch.manual_seed(0)
    modules = modules or {"trunk": torch.nn.Linear(4, 5), "head": torch.nn.Linear(5, 2)}
    modules = {name: module.to(dtype) for name, module in modules.items()}
    hparams = {"shared_modules": ["trunk"], "rule": "project"}
    for key in list(options):
        if key in ("rule", "granularity", "shared_modules", "log_interval", "aux_scale"):
            hparams[key] = options.pop(key)
    optimizer = optimizer or (lambda p: torch.optim.Adam(p, lr=0.01, fused=True))
    run_opts = {"device": "cpu", "noprogressbar": True, **options}
    return Pair(modules, optimizer, hparams, run_opts, checkpointer)


def weights(brain):
    return {n: p.detach().clone() for n, p in brain.modules.named_parameters()}


def assert_same(one, other, **tolerance):
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], **(tolerance or {"rtol": 0, "atol": 0})
        )


def test_accumulation_is_the_whole_batch_and_the_last_part_is_stepped():
    parts = batches(7, items=1)
    joined = [
        (torch.cat([b[0] for b in group]), *parts[0][1:])
        for group in (parts[:4], parts[4:])
    ]
    one, other = make(), make(grad_accumulation_factor=4)
    one.fit([1, 2], loader(joined))
    other.fit([1, 2], loader(parts))
    assert one.optimizer_step == other.optimizer_step == 4
    assert_same(weights(one), weights(other), rtol=1e-12, atol=1e-14)


def test_epochs_of_different_lengths_are_stepped_to_their_ends():
    """As with batches by seconds of audio, whose number changes from epoch to epoch."""

    class Growing(torch.utils.data.Sampler):
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 2 * self.epoch + 1

        def __iter__(self):
            return iter(range(len(self)))

    brain, sampler = make(grad_accumulation_factor=2), Growing()
    brain.train_sampler = sampler
    data = batches(5)
    brain.fit([1, 2], DataLoader(data, batch_size=None, sampler=sampler))
    assert brain.optimizer_step == 2 + 3


def test_debug_mode_steps_what_it_has_accumulated():
    brain = make(grad_accumulation_factor=4, debug=True, debug_batches=2, debug_epochs=1)
    brain.fit([1], loader(batches(7)))
    assert brain.optimizer_step == 1


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nonfinite_main_gradient_skips_the_step_as_a_whole(fused, value):
    data = batches(5)
    bad = (data[2][0], torch.tensor(value, dtype=torch.float64), data[2][2])
    adam = lambda p: torch.optim.AdamW(p, lr=0.01, fused=fused)  # noqa: E731
    one, other = make(optimizer=adam), make(optimizer=adam)
    one.fit([1], loader(data[:2] + data[3:]))
    other.fit([1], loader(data[:2] + [bad] + data[3:]))
    assert other.monitor.read()["main_nonfinite"] == 1
    assert_same(weights(one), weights(other))
    moments = [s["exp_avg"] for s in other.optimizer.state.values()]
    assert all(torch.isfinite(moment).all() for moment in moments)
    assert other.means.read()["main"] == pytest.approx(one.means.read()["main"])


def test_a_nonfinite_auxiliary_gradient_leaves_plain_training():
    data = batches(4)
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    zero = torch.zeros((), dtype=torch.float64)
    one, other = make(), make()
    one.fit([1], loader([(x, main, zero) for x, main, _ in data]))
    other.fit([1], loader([(x, main, nan) for x, main, _ in data]))
    assert other.monitor.read()["auxiliary_nonfinite"] == 4
    assert_same(weights(one), weights(other))


def test_patience_ends_a_run_that_does_not_recover():
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    data = [(x, nan, aux) for x, _, aux in batches(6)]
    brain = make(nonfinite_patience=2)
    with pytest.raises(
        UserError, match="3 steps of this epoch .*nonfinite_patience allows 2"
    ):
        brain.fit([1], loader(data))


@pytest.mark.parametrize("most", [1e-3, 0.0, -1.0])
def test_all_parameter_groups_are_clipped_unless_that_is_switched_off(most):
    def two_groups(parameters):
        parameters = list(parameters)
        return torch.optim.SGD(
            [{"params": parameters[:2]}, {"params": parameters[2:]}], lr=1.0
        )

    brain = make(optimizer=two_groups, max_grad_norm=most)
    before = weights(brain)
    brain.fit([1], loader(batches(1)))
    moved = torch.cat([(v - before[n]).flatten() for n, v in weights(brain).items()])
    if most > 0:
        assert moved.norm() == pytest.approx(most, rel=1e-3)
    else:
        assert moved.norm() > 0.1


def test_what_the_gradients_cannot_work_with_is_one_clear_error():
    with pytest.raises(UserError, match="no trainable parameter belongs to 'trunck'"):
        make(shared_modules=["trunck"]).fit([1], loader(batches(1)))


def test_bf16_trains_and_the_rule_sees_fp32():
    brain = make(torch.float32, precision="bf16")
    brain.fit([1, 2], loader(batches(8, dtype=torch.float32)))
    full = make(torch.float32)
    full.fit([1, 2], loader(batches(8, dtype=torch.float32)))
    for name, value in weights(brain).items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, weights(full)[name], atol=0.02, rtol=0.05)


def test_a_scaled_loss_gives_the_same_step():
    """What fp16 does with a GradScaler, on the CPU: scale, unscale, skip."""
    plain, scaled = make(torch.float32), make(torch.float32)
    scaled.scaler = torch.GradScaler("cpu", enabled=True, init_scale=4096.0)
    plain.fit([1], loader(batches(5, dtype=torch.float32)))
    scaled.fit([1], loader(batches(5, dtype=torch.float32)))
    assert_same(weights(plain), weights(scaled), rtol=1e-4, atol=1e-6)


def test_a_scaler_skips_a_nonfinite_main_gradient():
    data = batches(3, dtype=torch.float32)
    bad = (data[1][0], torch.tensor(float("inf")), data[1][2])
    brain = make(torch.float32)
    brain.scaler = torch.GradScaler("cpu", enabled=True, init_scale=4096.0)
    brain.fit([1], loader([data[0], bad, data[2]]))
    assert brain.scaler.get_scale() == 2048.0
    assert all(torch.isfinite(value).all() for value in weights(brain).values())


def test_nothing_is_fetched_from_the_device_within_a_step():
    """With a fused optimizer, between two looks."""
    brain = make()
    brain.log_interval = 1000
    brain.on_fit_start()
    brain._batches, brain.step = 10, 1
    data = batches(3)
    brain.fit_batch(data[0])  # the first makes the optimizer's state
    with HostReads() as reads:
        brain.fit_batch(data[1])
        brain.fit_batch(data[2])
    assert reads.places == []


@pytest.mark.parametrize("rule", ["project", "sum"])
def test_two_ranks_are_one_process_with_the_joined_batch(rule):
    whole, ranks = train(rule), of_ranks(lambda rank: train(rule, rank, 2))
    for name, value in whole["state"].items():
        assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])
        torch.testing.assert_close(ranks[0]["state"][name], value, rtol=1e-9, atol=1e-12)
    # The threshold was in play: some items were dropped, and not all.
    kept, items = (sum(column) for column in zip(*whole["kept"]))
    assert 0 < kept < items
    if rule == "project":
        assert 0 < whole["read"]["conflict_rate"] < 1
        assert whole["read"]["conflict_rate"] == ranks[0]["read"]["conflict_rate"]


def test_the_unified_network_has_no_parameter_without_gradient():
    network = small_network()
    output = network(torch.randn(2, 400))
    clean = network.encoder(torch.randn(2, 400))
    loss = (
        output.sources.square().sum()
        + (output.enhanced_representation - clean).square().sum()
    )
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_plain_mean_losses_will_do():
    """As SpeechBrain's recipes return them; each batch then counts alike."""

    class Plain(Pair):
        def compute_objectives(self, predictions, batch, stage):
            main, auxiliary = super().compute_objectives(predictions, batch, stage)
            return main.total / 3, auxiliary.total / 3

    one, other = make(grad_accumulation_factor=2), make(grad_accumulation_factor=2)
    other.__class__ = Plain
    one.fit([1], loader(batches(4)))
    other.fit([1], loader(batches(4)))
    assert_same(weights(one), weights(other), rtol=1e-12, atol=1e-14)
    assert other.evaluate(loader(batches(2))) == pytest.approx(
        one.evaluate(loader(batches(2)))
    )


@pytest.mark.parametrize("returned", [{"loss": 1}, (1, 2, 3)])
def test_losses_of_another_shape_are_one_clear_error(returned):
    brain = make()
    brain.compute_objectives = lambda *_: returned
    with pytest.raises(UserError, match="expected the main and the auxiliary loss"):
        brain.fit([1], loader(batches(1)))


def test_what_the_gradients_remember_is_in_the_checkpoint(tmp_path):
    def run(epochs):
        checkpointer = sb.utils.checkpoints.Checkpointer(tmp_path)
        brain = make(checkpointer=checkpointer, aux_scale="ema")
        checkpointer.add_recoverables(dict(brain.modules.items()))
        brain.fit(epochs, loader(batches(2)))
        return brain

    before = run([1])
    before.checkpointer.save_checkpoint()
    after = run([])
    assert before.gradients.moving_ratio.averages.all()
    assert torch.equal(
        after.gradients.moving_ratio.averages, before.gradients.moving_ratio.averages
    )


def test_a_fit_batch_of_ones_own_is_told(caplog):
    class Own(Pair):
        def fit_batch(self, batch):
            return super().fit_batch(batch)

    with caplog.at_level("WARNING"):
        brain = make()
        Own(dict(brain.modules), None, {"shared_modules": ["trunk"]}, {"device": "cpu"})
    assert "Own has a fit_batch of its own" in caplog.text


def test_one_loss_makes_a_recipe_of_one_task_and_is_no_sum_of_two():
    losses = torch.tensor([1.0, 3.0])
    for loss in (losses.mean(), TaskLoss.of(losses)):
        main, auxiliary = as_two_task_losses(loss, one_task=True)
        assert main.mean() == 2 and auxiliary is None
        with pytest.raises(UserError, match="one loss alone where there is one task"):
            as_two_task_losses(loss)

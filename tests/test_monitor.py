"""The monitor: its statistics against plain vectors, its ring, its windows, its state."""

import numpy as np
import pytest
import speechbrain as sb
import torch
from host_reads import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st
from test_brain import assert_same, batches, make, weights

from unified_se_ss.gradients import (
    RULES,
    CombinedGradients,
    ConflictMonitor,
    TaskLoss,
    TwoTaskGradients,
    TwoTaskLosses,
    find_rule,
)
from unified_se_ss.gradients.monitor import (
    COSINE_EDGES,
    LOG_RATIO_EDGES,
    MEANS,
    Statistics,
    Steps,
    scopes_of,
    statistics,
)

GROUPS = ["net.a.weight", "net.a.bias", "net.b.weight", "net.c.weight", "net.c.bias"]
SIZES = [12, 3, 20, 2, 5]


def vectors(steps, seed=0):
    """Random gradients: a list per step of (g_a, g_m) per group; some of them zero."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(steps):
        pairs = [
            (10 ** rng.uniform(-2, 2) * rng.standard_normal(n), rng.standard_normal(n))
            for n in SIZES
        ]
        for one in range(2):
            if rng.uniform() < 0.4:
                pairs[rng.integers(len(pairs))][one][:] = 0
        drawn.append(pairs)
    return drawn


def combined(pairs, rule=None, scale=1.0, auxiliary_finite=True, main_finite=True):
    """What `combine` returns for such gradients."""
    a, b, c = (
        torch.tensor([float(x @ y) for x, y in chosen], dtype=torch.float64)
        for chosen in (
            [(p, p) for p, _ in pairs],
            [(q, q) for _, q in pairs],
            [(p, q) for p, q in pairs],
        )
    )
    w_a, w_m = (rule or find_rule("project"))(a, b, c)
    flags = torch.tensor(auxiliary_finite), torch.tensor(main_finite)
    scale = torch.tensor(scale, dtype=torch.float64)
    return CombinedGradients(a, b, c, w_a, w_m, scale, *flags)


def expected(drawn, rule, chosen):
    """The means of statistics, from vectors, group by group."""
    terms = {name: [] for name in MEANS}
    for pairs in drawn:
        weights = combined(pairs, rule)
        for group in chosen:
            (aux, main), w_a, w_m = (
                pairs[group],
                float(weights.auxiliary_weight[group]),
                float(weights.main_weight[group]),
            )
            long_a, long_m = np.linalg.norm(aux), np.linalg.norm(main)
            if long_a == 0 or long_m == 0:
                continue
            unit = main / long_m
            update, plain = w_a * aux + w_m * main, aux + main
            opposing, change = max(0, -aux @ unit), (update - plain) @ unit
            terms["conflict_rate"].append(aux @ main < 0)
            terms["mean_cosine"].append(aux @ main / long_a / long_m)
            terms["log10_ratio"].append(np.log10(long_a / long_m))
            terms["removed"].append(min(opposing, max(0, change)) / long_a)
            terms["added"].append(max(0, change - opposing) / long_m)
            terms["lost"].append(max(0, -change) / long_m)
            terms["rescaled"].append(w_a != 1)
            terms["stretch"].append(np.linalg.norm(update) / np.linalg.norm(plain))
        aux, main = (
            np.concatenate([pairs[group][task] for group in chosen]) for task in range(2)
        )
        long = np.linalg.norm(aux) * np.linalg.norm(main)
        if long:
            terms["cosine"].append(aux @ main / long)
    return terms


@pytest.mark.parametrize("name", sorted(RULES))
def test_statistics_are_those_of_the_vectors(name):
    rule, drawn = find_rule(name), vectors(40)
    monitor = ConflictMonitor(GROUPS, capacity=7)
    for pairs in drawn:
        monitor.update(combined(pairs, rule))
    rows = {row["scope"]: row for row in monitor.windows()}
    scopes = {"all": range(5), "net.a": [0, 1], "net.b": [2], "net.c": [3, 4]}
    assert list(rows) == list(scopes)
    for scope, chosen in scopes.items():
        terms, row = expected(drawn, rule, chosen), rows[scope]
        for key, values in terms.items():
            assert row[key] == pytest.approx(np.mean(values), rel=1e-6, abs=1e-9), key
        assert row["largest_stretch"] == pytest.approx(max(terms["stretch"]), rel=1e-6)
        assert row["compared"] == len(terms["stretch"])
        zero = [[not pair[task].any() for task in range(2)] for pairs in drawn
                for pair in [pairs[group] for group in chosen]]  # fmt: skip
        assert [row["auxiliary_zero"], row["main_zero"]] == np.sum(zero, 0).tolist()
    every, whole = expected(drawn, rule, range(5)), rows["all"]
    for key, values, edges in (
        ("cosine_from_-1_to_1", every["mean_cosine"], COSINE_EDGES),
        ("log10_ratio_from_-4_to_4", every["log10_ratio"], LOG_RATIO_EDGES),
    ):
        assert whole[key] == np.histogram(values, edges)[0].tolist()
        assert sum(whole[key]) == whole["compared"]


def test_what_the_rules_do_in_one_conflict():
    """By hand: g_a = (-3, 3), g_m = (1, 0) opposes by 3, which is 1/sqrt(2) of it."""
    pairs = [(np.array([-3.0, 3.0]), np.array([1.0, 0.0]))]
    found = {}
    for name in ("sum", "project", "remedy", "main_only"):
        monitor = ConflictMonitor(["a"], "global")
        monitor.update(combined(pairs, find_rule(name)))
        (row,) = monitor.windows()
        assert (row["conflict_rate"], row["lost"]) == (1, 0)
        found[name] = row["removed"], row["added"], row["rescaled"]
    assert found["sum"] == (0, 0, 0)
    assert found["project"] == pytest.approx((0.5**0.5, 0, 0))
    assert found["remedy"] == pytest.approx((0.5**0.5, 0.5**0.5, 0))  # + sin phi
    assert found["main_only"] == pytest.approx((0.5**0.5, 0, 1))


numbers = st.just(0.0) | st.floats(1e-6, 1e6)


@settings(max_examples=25)
@given(a=numbers, b=numbers, cosine=st.floats(-1, 1), w=st.tuples(*[st.floats(-5, 5)] * 2))
def test_no_change_along_the_main_gradient_is_left_out(a, b, cosine, w):
    """delta = removed ||g_a|| + (added - lost) ||g_m||, for any weights."""
    c = cosine * (a * b) ** 0.5
    one = [np.array([[x]]) for x in (a, b, c, *w)]
    yes = np.array([True])
    found = statistics(Steps(*one, np.ones(1), yes, yes), np.ones((1, 1)))
    if a * b == 0:
        assert found.mean("removed") is None and found.mean("stretch") is None
        return
    delta = ((w[0] - 1) * c + (w[1] - 1) * b) / b**0.5
    said = found.mean("removed") * a**0.5
    said += (found.mean("added") - found.mean("lost")) * b**0.5
    assert said == pytest.approx(delta, rel=1e-6, abs=1e-6 * (a + b) ** 0.5)
    assert 0 <= found.mean("removed") <= 1 + 1e-12


@settings(max_examples=20, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    capacity=st.integers(1, 9),
    looks=st.sets(st.integers(0, 12)),
)
def test_spans_add_up_wherever_one_looks(cuts, capacity, looks):
    """Ring overflow, looks and window limits change nothing of what is counted."""
    drawn = vectors(sum(cuts))
    whole = ConflictMonitor(GROUPS, capacity=1000)
    parts = ConflictMonitor(GROUPS, capacity=capacity)
    whole.reset(window=3)
    parts.reset(window=3)
    for number, pairs in enumerate(drawn):
        whole.update(combined(pairs))
        parts.update(combined(pairs))
        if number in looks:
            assert parts.read()["steps"] == number + 1
    assert_alike(whole.windows(), parts.windows())
    assert parts.read() == pytest.approx(whole.read())
    assert [row["step"] for row in parts.windows() if row["scope"] == "all"] == [
        min(end, len(drawn)) for end in range(3, len(drawn) + 3, 3)
    ]


def assert_alike(rows, others):
    assert len(rows) == len(others)
    for row, other in zip(rows, others):
        assert row.keys() == other.keys()
        for key in row:
            if isinstance(row[key], float):
                assert row[key] == pytest.approx(other[key], rel=1e-12)
            else:
                assert row[key] == other[key], key


def test_steps_that_are_not_finite_count_as_such_alone():
    drawn = vectors(6)
    monitor, without = (ConflictMonitor(GROUPS) for _ in range(2))
    for number, pairs in enumerate(drawn):
        good = dict(auxiliary_finite=number != 1, main_finite=number not in (3, 4))
        if not all(good.values()):
            pairs = [(aux * np.inf, main * np.nan) for aux, main in pairs]
        else:
            without.update(combined(pairs))
        with np.errstate(all="ignore"):
            monitor.update(combined(pairs, **good))
    read, clean = monitor.read(), without.read()
    assert (read["steps"], read["auxiliary_nonfinite"], read["main_nonfinite"]) == (6, 1, 2)
    assert read["conflict_rate"] == clean["conflict_rate"]
    counted = {"steps", "auxiliary_nonfinite", "main_nonfinite", "step"}
    rows = [
        [{k: v for k, v in row.items() if k not in counted} for row in found.windows()]
        for found in (monitor, without)
    ]
    assert_alike(*rows)


@pytest.mark.parametrize("rule", ["project", "remedy"])
def test_an_fp16_scale_cancels(rule):
    def watch(scale):
        torch.manual_seed(0)
        shared, head = torch.nn.Linear(4, 5).double(), torch.nn.Linear(5, 2).double()
        network = torch.nn.ModuleDict({"shared": shared, "head": head})
        gradients = TwoTaskGradients(network.named_parameters(), ["shared"], rule=rule)
        monitor = ConflictMonitor(gradients.groups)
        for _ in range(5):
            hidden = shared(torch.randn(3, 4).double())
            main = TaskLoss.of(head(hidden).square().sum(1))
            auxiliary = TaskLoss.of((hidden - 1).square().sum(1))
            gradients.accumulate(TwoTaskLosses(main, auxiliary), lambda x: x * scale)
            monitor.update(gradients.combine())
        return monitor.windows()

    assert_alike(watch(1.0), watch(65536.0))


def test_the_auxiliary_scale_is_reported():
    monitor = ConflictMonitor(GROUPS)
    for pairs, scale in zip(vectors(3), (1.0, 2.0, 6.0)):
        monitor.update(combined(pairs, scale=scale))
    assert monitor.windows()[0]["auxiliary_scale"] == 3


def test_a_step_is_two_operations_and_no_look():
    monitor = ConflictMonitor(GROUPS, capacity=10)
    steps = [combined(pairs) for pairs in vectors(9)]
    monitor.update(steps[0])  # makes the ring
    with HostReads() as reads:
        for step in steps[1:-1]:
            monitor.update(step)
    assert reads.places == []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        monitor.update(steps[0])
    counts = {event.key: event.count for event in seen.key_averages()}
    assert (counts["aten::cat"], counts.get("aten::copy_", 0)) == (2, 0), counts


def test_nothing_was_seen():
    monitor = ConflictMonitor(GROUPS)
    assert monitor.windows() == []
    assert monitor.read()["conflict_rate"] is None
    monitor.update(combined([(0 * aux, main) for aux, main in vectors(1)[0]]))
    row = monitor.windows()[0]
    assert (row["compared"], row["auxiliary_zero"]) == (0, 5)
    assert all(row[name] is None for name in (*MEANS, "largest_stretch"))


def test_a_network_without_shared_parameters_can_be_watched():
    monitor = ConflictMonitor([])
    monitor.update(combined([]))
    assert [row["scope"] for row in monitor.windows()] == ["all"]


def test_reset_begins_an_epoch():
    monitor = ConflictMonitor(GROUPS, capacity=4)
    for pairs in vectors(3):
        monitor.update(combined(pairs))
    monitor.reset(step=100, window=2)
    for pairs in vectors(3):
        monitor.update(combined(pairs))
    assert monitor.read()["steps"] == 3
    assert [r["step"] for r in monitor.windows() if r["scope"] == "all"] == [102, 103]


def test_the_state_can_be_saved_and_loaded(tmp_path):
    one, other = (ConflictMonitor(GROUPS, capacity=4) for _ in range(2))
    drawn = vectors(11)
    one.reset(step=5, window=3)
    for pairs in drawn[:7]:
        one.update(combined(pairs))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    torch.save(one.state_dict(), tmp_path / "monitor.pt")
    other.load_state_dict(torch.load(tmp_path / "monitor.pt", weights_only=True))
    for pairs in drawn[7:]:
        one.update(combined(pairs))
        other.update(combined(pairs))
    assert_alike(one.windows(), other.windows())
    assert one.read() == other.read()
    for name, monitor in (("one", one), ("other", other)):
        torch.save(monitor.state_dict(), tmp_path / name / "monitor.pt")
    assert len({(tmp_path / n / "monitor.pt").read_bytes() for n in ("one", "other")}) == 1


@pytest.mark.parametrize(
    "groups, granularity, scopes",
    [
        (GROUPS, "parameter", ["all", "net.a", "net.b", "net.c"]),
        (["net.a", "net.b"], "module", ["all", "net.a", "net.b"]),
        (["all"], "global", ["all"]),
        (["scale"], "parameter", ["all", "scale"]),
    ],
)
def test_scopes(groups, granularity, scopes):
    names, members = scopes_of(groups, granularity)
    assert names == scopes
    assert members.shape == (len(scopes), len(groups)) and members[0].all()
    if len(scopes) > 1:
        assert (members[1:].sum(0) == 1).all()


def test_a_hundred_layers_are_few_scopes():
    groups = [
        f"net.{b}.layers.{n}.part.{p}" for b in range(4) for n in range(25) for p in "wb"
    ]
    names, members = scopes_of(groups)
    assert names == ["all", *(f"net.{b}.layers" for b in range(4))]
    assert (members[1:].sum(1) == 50).all()


def test_none_is_neutral():
    found = statistics(
        Steps(*np.ones((5, 2, 3)), np.ones(2), np.ones(2, bool), np.ones(2, bool)),
        np.ones((1, 3)),
    )
    joined = Statistics.none(1) + found
    assert joined.rows(["all"]) == found.rows(["all"])


def test_an_epoch_resumed_midway_ends_alike_and_keeps_its_windows(tmp_path):
    """Killed after six of nine batches, weights and monitor go on from the checkpoint."""

    class Killed(Exception):
        pass

    def run(folder, kill_at=None):
        checkpointer = sb.utils.checkpoints.Checkpointer(folder)
        brain = make(checkpointer=checkpointer, ckpt_interval_steps=2)
        brain.counter = sb.utils.epoch_loop.EpochCounter(2)
        checkpointer.add_recoverables(dict(brain.modules.items()))
        checkpointer.add_recoverable("counter", brain.counter)
        train = sb.dataio.dataloader.SaveableDataLoader(batches(9), batch_size=None)
        checkpointer.add_recoverable("loader", train)

        def kill(*_):
            if kill_at == brain.optimizer_step:
                raise Killed

        brain.on_fit_batch_start = kill
        brain._window = lambda: 4
        brain.fit(brain.counter, train)
        return brain

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=15)
    resumed = run(tmp_path / "killed")
    assert resumed.optimizer_step == whole.optimizer_step == 18
    assert_same(weights(whole), weights(resumed))
    assert_alike(whole.monitor.windows(), resumed.monitor.windows())
    assert whole.monitor.read() == resumed.monitor.read()
    ends = [row["step"] for row in whole.monitor.windows() if row["scope"] == "all"]
    assert ends == [13, 17, 18]


@pytest.mark.parametrize(
    "batches_, epochs, interval, factor, window",
    [
        (50_000, 200, 50, 1, 10_000),  # 1000 windows in all
        (50_000, 10, 50, 1, 2500),  # 20 an epoch
        (90, 10, 50, 1, 90),  # no less than an interval
        (7, 10, 1, 1, 1),
        (41, 10, 1, 2, 2),  # steps, not batches
        (0, 10, 1, 1, 1),
    ],
)
def test_how_long_a_window_is(batches_, epochs, interval, factor, window):
    brain = make(grad_accumulation_factor=factor)
    brain.hparams.number_of_epochs = epochs
    brain.log_interval, brain._batches = interval, batches_
    assert brain._window() == window

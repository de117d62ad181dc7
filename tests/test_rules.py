"""Rules of two gradients: each against its oracle, and what holds for all of them."""

import itertools
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rule_oracles import (
    NO_ECOS,
    ORACLES,
    difference,
    gradvac_differences,
    products,
    published_remedy,
    random_pair,
    shared_gradient,
)
from torchjd import aggregation

from unified_se_ss.gradients import (
    RULES,
    TaskLoss,
    TwoTaskGradients,
    TwoTaskLosses,
    find_rule,
)

COMPARISONS = [(name, oracle) for name, found in ORACLES.items() for oracle in found]
NAMES = [f"{name}-{oracle.words}-{oracle.options}" for name, oracle in COMPARISONS]

# Rules that look at one task alone, and so have nothing to say of a vanishing other one.
ONE_TASK = {"main_only", "auxiliary_only", "alias_2023"}
STRICT = ("remedy", {"strict": True})
SYMMETRIC = ["sum", "pcgrad", "gradvac", "mgda", "cagrad", "imtl_g", "nash", "aligned_mtl"]
SYMMETRIC += ["config", "upgrad"]


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def pairs(number, seed=0, size=7):
    generator = torch.Generator().manual_seed(seed)
    return [random_pair(generator, size) for _ in range(number)]


@st.composite
def vectors(draw):
    """Two gradients, neither nearly zero nor nearly on one line."""
    elements = st.floats(-10, 10, width=32)
    g_a, g_m = (
        torch.from_numpy(draw(arrays("float64", 7, elements=elements))) for _ in "am"
    )
    assume(g_a.norm() > 0.1 and g_m.norm() > 0.1)
    assume(abs(g_a @ g_m) < 0.999 * g_a.norm() * g_m.norm())
    return g_a * 10.0 ** draw(st.floats(-2, 2)), g_m


@st.composite
def numbers(draw):
    """(a, b, c) of any two gradients: of all lengths, and of all angles with the limits."""
    norm_a, norm_m = (10.0 ** draw(st.floats(-30, 30)) for _ in "am")
    cosine = draw(
        st.sampled_from(
            [-1.0, 1.0, 0.0, -1 + 1e-16, 1 - 1e-16, -1 + 1e-9, 1 - 1e-9, -1e-20]
        )
        | st.floats(-1, 1)
    )
    if draw(st.booleans()):
        norm_m = norm_a
    return tensor([norm_a**2, norm_m**2, cosine * norm_a * norm_m]).unbind()


# ----------------------------------------------------------------------------- oracles


@pytest.mark.parametrize(("name", "oracle"), COMPARISONS, ids=NAMES)
def test_random_gradients(name, oracle):
    rule, solved = find_rule(name, oracle.options), 0
    for pair in pairs(5 if oracle.slow else 40):
        expected = oracle.gradient(*pair)
        if expected is not None:
            solved += 1
            assert difference(shared_gradient(rule, *pair), expected) <= oracle.tolerance
    assert solved >= (4 if oracle.slow else 40)


@pytest.mark.parametrize(("name", "oracle"), COMPARISONS, ids=NAMES)
@settings(max_examples=10, deadline=None)
@given(pair=vectors())
def test_drawn_gradients(name, oracle, pair):
    expected = oracle.gradient(*pair)
    assume(expected is not None)
    # The vectors may nearly cancel, which leaves the difference of two larger numbers.
    size = expected.norm().clamp(min=1e-4 * min(g.norm() for g in pair))
    got = shared_gradient(find_rule(name, oracle.options), *pair)
    assert (got - expected).norm() <= oracle.tolerance * size


@pytest.mark.parametrize("beta", [0.0, 0.01, 0.5, 1.0])
def test_gradvac_step_after_step(beta):
    steps = pairs(100)
    assert max(gradvac_differences(steps, beta)) < 1e-11
    # torchjd adds eps to what it divides by; nothing else differs
    assert max(gradvac_differences(steps, beta, eps=1e-8)) < 1e-3


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(vectors(), min_size=2, max_size=8), beta=st.floats(0, 1))
def test_gradvac_on_drawn_gradients(steps, beta):
    assert max(gradvac_differences(steps, beta)) < 1e-9


def test_every_rule_has_an_oracle():
    assert set(RULES) == {*ORACLES, "gradvac"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sum", (0, 1)),
        ("project", (1, 1)),
        ("pcgrad", (0.5, 1.5)),
        ("gradvac", (0.5, 1.5)),
        ("upgrad", (0.25, 0.75)),
        ("mgda", (0.2, 0.4)),
        ("cagrad", (0.25, 0.5)),
        ("alias_2023", (2, 0)),
    ],
)
def test_the_example_of_the_docs(name, expected):
    got = shared_gradient(name, tensor([-1.0, 1.0]), tensor([1.0, 0.0]))
    torch.testing.assert_close(got, tensor(expected), check_dtype=False)


@settings(max_examples=15, deadline=None)
@given(
    pair=vectors(),
    c=st.floats(0, 1),
    places=st.lists(st.tuples(st.floats(0, 6.3), st.floats(0, 1)), min_size=5, max_size=20),
)
def test_cagrad_is_as_good_as_any_step_in_its_ball(pair, c, places):
    g_a, g_m = pair
    mean = (g_a + g_m) / 2
    got = shared_gradient(find_rule("cagrad", {"c": c}), g_a, g_m)
    radius = c * mean.norm()
    torch.testing.assert_close((got - mean).norm(), radius, rtol=1e-6, atol=1e-9)
    first = g_m / g_m.norm()
    second = g_a - (g_a @ first) * first
    second = second / second.norm()
    worst = min(got @ g_a, got @ g_m)
    for angle, part in places:
        direction = torch.cos(tensor(angle)) * first + torch.sin(tensor(angle)) * second
        other = mean + part * radius * direction
        slack = 1e-9 * max(g_a @ g_a, g_m @ g_m)
        assert min(other @ g_a, other @ g_m) <= worst + slack


# -------------------------------------------------------------------------- all rules


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=20, deadline=None)
@given(group=numbers(), memory=st.sampled_from([-1.0, 1.0]) | st.floats(-1, 1))
def test_no_rule_ever_gives_anything_but_numbers(name, group, memory):
    for value in RULES[name].step(*group, tensor(memory)):
        assert value.isfinite() and value.dtype is torch.float64
    for value in RULES[name](*group):
        assert value.isfinite()


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=15, deadline=None)
@given(group=numbers(), exponent=st.integers(-40, 40))
def test_a_common_factor_leaves_the_weights(name, group, exponent):
    """But those of `nash`, whose step has one length: they go with its inverse."""
    factor = 2.0**exponent
    scaled = [x * factor**2 for x in group]
    assume(all(y / factor**2 == x for x, y in zip(group, scaled)))  # nothing underflows
    expected, got = RULES[name](*group), RULES[name](*scaled)
    for x, y in zip(got, expected):
        torch.testing.assert_close(
            x * factor if name == "nash" else x, y, rtol=1e-9, atol=0
        )


@pytest.mark.parametrize("name", SYMMETRIC)
@settings(max_examples=15, deadline=None)
@given(pair=vectors())
def test_symmetric_rules_do_not_ask_which_task_is_the_main_one(name, pair):
    got, expected = shared_gradient(name, *pair), shared_gradient(name, *reversed(pair))
    size = max(g.norm() for g in pair) if name != "nash" else 1.0
    assert (got - expected).norm() <= 1e-10 * size


@pytest.mark.parametrize("name", sorted(set(RULES) - ONE_TASK))
@pytest.mark.parametrize("group", [(0.0, 4.0, 0.0), (4.0, 0.0, 0.0), (0.0, 0.0, 0.0)])
def test_a_vanishing_gradient_gives_the_plain_sum(name, group):
    w_a, w_m, memory = RULES[name].step(*map(tensor, group), tensor(0.25))
    assert (w_a, w_m, memory) == (1, 1, 0.25)


@pytest.mark.parametrize("name", RULES)
def test_groups_are_told_apart_and_may_be_none(name):
    many = [tensor(x) for x in zip(*[products(*p) for p in pairs(5)], (0.0, 2.0, 0.0))]
    for i, one in enumerate(zip(*many)):
        for x, y in zip(RULES[name](*many), RULES[name](*one)):
            assert torch.equal(x[i], y)
    assert [len(w) for w in RULES[name](*torch.zeros(3, 0, dtype=torch.float64))] == [0, 0]


@pytest.mark.parametrize(("name", "options"), [*((n, {}) for n in RULES), STRICT])
def test_no_rule_waits_for_the_device(name, options):
    """A tensor without data: whoever looks at one of its numbers gets an error."""
    a, b, c, memory = torch.ones(4, 3, device="meta", dtype=torch.float64)
    for value in find_rule(name, options).step(a, b, c, memory):
        assert value.shape == (3,) and value.device.type == "meta"


# ---------------------------------------------------------------- parallel and opposite


def on_one_line(r, sign):
    """Two gradients on one line, g_a being r times as long."""
    g_m = tensor([3.0, 0.0, -4.0])
    return sign * r * g_m, g_m


@pytest.mark.parametrize("r", [1.0, 3.0, 1e-12, 1e12])
@pytest.mark.parametrize(
    "name", ["pcgrad", "gradvac", "mgda", "imtl_g", "nash", "config", "upgrad"]
)
def test_opposite_gradients_give_zero(name, r):
    g_a, g_m = on_one_line(r, -1)
    size = max(g_a.norm(), g_m.norm())
    assert shared_gradient(name, g_a, g_m).norm() <= 1e-15 * size


@pytest.mark.parametrize("r", [1.0, 3.0, 1e-12, 1e12])
def test_opposite_gradients_where_the_longer_one_counts(r):
    g_a, g_m = on_one_line(r, -1)
    mean, size = (g_a + g_m) / 2, max(g_a.norm(), g_m.norm())
    shorter = min(g_a, g_m, key=torch.norm)
    aligned, averse = (shared_gradient(n, g_a, g_m) for n in ("aligned_mtl", "cagrad"))
    assert (aligned - mean).norm() <= 1e-15 * size
    expected = mean + 0.5 * mean.norm() * shorter / shorter.norm()
    assert (averse - expected).norm() <= 1e-15 * size
    # what opposes the main gradient goes, and the main gradient stays
    assert (shared_gradient("project", g_a, g_m) - g_m).norm() <= 1e-15 * size


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("sum", 2),
        ("project", 2),
        ("pcgrad", 2),
        ("remedy", 2),
        ("gradvac", 2),
        ("config", 2),
    ]
    + [("mgda", 1), ("imtl_g", 1), ("aligned_mtl", 1), ("upgrad", 1), ("cagrad", 1.5)]
    + [("nash", 2**0.5 / 5)],
)
def test_equal_gradients(name, factor):
    g, _ = on_one_line(1.0, 1)
    torch.testing.assert_close(shared_gradient(name, g, g), factor * g)


def test_which_rules_may_oppose_the_main_task():
    opposing = set()
    for name, (g_a, g_m) in itertools.product(RULES, pairs(200)):
        shared = shared_gradient(name, g_a, g_m)
        if shared @ g_m < -1e-10 * shared.norm() * g_m.norm():
            opposing.add(name)
    assert opposing == {"sum", "auxiliary_only", "cagrad", "aligned_mtl"}


# ------------------------------------------------------------------------------ remedy


@settings(max_examples=25, deadline=None)
@given(group=numbers(), k=st.floats(1, 100))
def test_remedy_stretches_no_more_than_the_projection_of_the_paper(group, k):
    a, b, c = group
    bound = (1 + a / b).sqrt()
    w_a, w_m = find_rule("remedy", {"k": k})(a, b, c)
    assert 0 < w_a <= 1 + 1e-12
    assert w_m <= ((1 + bound) if c < 0 else bound) * (1 + 1e-12)


def stretches(size, number, r=6.0):
    """Length of the shared gradient over that of the sum: strict and default."""
    generator = torch.Generator().manual_seed(0)
    found = {True: [], False: []}
    for _ in range(number):
        g_a, g_m = torch.randn(2, size, generator=generator, dtype=torch.float64)
        g_a *= r * g_m.norm() / g_a.norm()
        for strict, longest in found.items():
            shared = shared_gradient(find_rule("remedy", {"strict": strict}), g_a, g_m)
            longest.append(float(shared.norm() / (g_a + g_m).norm()))
    return max(found[True]), max(found[False])


def test_the_published_remedy_stretches_without_bound_and_the_default_does_not():
    strict, default = stretches(size=10_000, number=100)
    # Random gradients are nearly orthogonal, so the sum is about sqrt(1 + r^2) |g_m| long,
    # which is what the default stretches g_m to at most.
    assert strict > 100 and default < 2

    a, b = tensor(36.0), tensor(1.0)
    for cosine in (1e-3, 1e-6, 1e-9):
        group = a, b, 6 * tensor(cosine)
        assert find_rule("remedy", {"strict": True})(*group)[1] == pytest.approx(1 / cosine)
        assert find_rule("remedy")(*group)[1] == pytest.approx(37**0.5)


def test_the_published_remedy_divides_by_zero_and_the_default_does_not():
    g_a, g_m = tensor([1.0, 2.0]), tensor([0.0, 0.0])
    assert published_remedy(g_a, g_m).isnan().any()
    assert shared_gradient(find_rule("remedy", {"strict": True}), g_a, g_m).isnan().any()
    assert torch.equal(shared_gradient("remedy", g_a, g_m), g_a)
    assert torch.equal(shared_gradient("remedy", g_m, g_a), g_a)


def test_remedy_is_the_published_one_where_that_stretches_little():
    same = 0
    for g_a, g_m in pairs(300):
        strict = shared_gradient(find_rule("remedy", {"strict": True}), g_a, g_m)
        default = shared_gradient("remedy", g_a, g_m)
        cosine, r = g_a @ g_m / g_a.norm() / g_m.norm(), g_a.norm() / g_m.norm()
        if cosine < 0 or cosine > 1 / (1 + r**2).sqrt() or r < 5:
            same += 1
            assert difference(default, strict) < 1e-9
    assert same > 200


# ----------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sum", {"k": 1}, "rule 'sum' has no option 'k'; it has: none"),
        ("cagrad", {"C": 1}, "rule 'cagrad' has no option 'C'; it has: c"),
        (
            "cagrad",
            {"c": "0.5"},
            "c of rule 'cagrad' is '0.5'; expected a number from 0 to 1",
        ),
        ("cagrad", {"c": 1.5}, "c of rule 'cagrad' is 1.5; expected a number from 0 to 1"),
        (
            "cagrad",
            {"c": -0.1},
            "c of rule 'cagrad' is -0.1; expected a number from 0 to 1",
        ),
        (
            "gradvac",
            {"beta": 2},
            "beta of rule 'gradvac' is 2; expected a number from 0 to 1",
        ),
        ("gradvac", {"beta": float("nan")}, "is nan; expected a number from 0 to 1"),
        ("gradvac", {"beta": True}, "is True; expected a number from 0 to 1"),
        ("remedy", {"k": 0.5}, "k of rule 'remedy' is 0.5; expected a number of 1 or more"),
        ("remedy", {"strict": 1}, "strict of rule 'remedy' is 1; expected True or False"),
    ],
)
def test_a_wrong_option_is_told(name, options, message):
    with pytest.raises(ValueError) as error:
        find_rule(name, options)
    assert str(error.value) == f"rule_options: {message}" or message in str(error.value)
    assert "\n" not in str(error.value)


def test_options_change_the_rule_and_not_its_defaults():
    g_a, g_m = tensor([-1.0, 1.0]), tensor([1.0, 0.0])
    mean = shared_gradient(find_rule("cagrad", {"c": 0}), g_a, g_m)
    assert torch.equal(mean, (g_a + g_m) / 2)
    assert not torch.equal(shared_gradient("cagrad", g_a, g_m), mean)


# ----------------------------------------------------------------------------- torchjd

AGGREGATORS = {
    "AlignedMTL": {},
    "CAGrad": {"c": 0.4},
    "ConFIG": {},
    "Constant": {"weights": [3.0, 1.0]},
    "DualProj": {"pref_vector": [2.0, 1.0]},
    "FairGrad": {"alpha": 2.0},
    "GradVac": {"beta": 0.3},
    "IMTLG": {},
    "MGDA": {},
    "Mean": {},
    "NashMTL": {"max_norm": 2.0},
    "PCD": {"tau": 0.1},
    "PCGrad": {},
    "Sum": {},
    "UPGrad": {"pref_vector": [0.9, 0.1]},
}


def build(name, options):
    """The same aggregator as torchjd has it."""
    given = {k: tensor(v) if isinstance(v, list) else v for k, v in options.items()}
    if name == "NashMTL":
        given["n_tasks"] = 2
    return getattr(aggregation, name)(**given)


@pytest.mark.parametrize(("name", "options"), AGGREGATORS.items(), ids=AGGREGATORS)
def test_an_aggregator_of_torchjd_is_a_rule(name, options):
    """Two groups over four steps, each as an aggregator of its own on the whole rows."""
    if name == "NashMTL":
        pytest.importorskip("ecos", reason=NO_ECOS)
    rule = find_rule(f"torchjd.{name}", options)
    aggregators = build(name, options), build(name, options)
    for step in range(4):
        groups = pairs(2, seed=step)
        a, b, c = map(torch.stack, zip(*[products(*pair) for pair in groups]))
        w_a, w_m, _ = rule.step(a, b, c, torch.zeros_like(a))
        for i, (g_a, g_m) in enumerate(groups):
            expected = aggregators[i](torch.stack([g_m, g_a]))
            got = w_a[i] * g_a + w_m[i] * g_m
            tolerance = 1e-3 if name in ("CAGrad", "FairGrad", "NashMTL") else 1e-8
            assert (got - expected).norm() <= tolerance * (expected.norm() + 1e-12)


def test_all_names_are_listed_and_all_of_these_are_tested():
    with pytest.raises(ValueError, match="torchjd has: ") as error:
        find_rule("torchjd.Nichts")
    listed = str(error.value).split("torchjd has: ")[1].split(", ")
    assert listed == [f"torchjd.{name}" for name in sorted(AGGREGATORS)]


@pytest.mark.parametrize("r", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", ["ConFIG", "PCGrad", "MGDA", "IMTLG", "AlignedMTL"])
def test_an_aggregator_gets_gradients_on_one_line(name, sign, r):
    g_a, g_m = on_one_line(r, sign)
    expected = build(name, {})(torch.stack([g_m, g_a]))
    got = shared_gradient(f"torchjd.{name}", g_a, g_m)
    assert (got - expected).norm() <= 1e-7 * max(g_a.norm(), g_m.norm())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "GradDrop",
            {},
            "torchjd.GradDrop', which is no rule: it looks at single coordinates",
        ),
        ("TrimmedMean", {}, "which is no rule: it looks at single coordinates"),
        ("ExcessMTL", {}, "which is no rule: it looks at single coordinates"),
        ("Krum", {}, "which is no rule: it needs three gradients"),
        ("Random", {}, "which is no rule: its weights are drawn at random"),
        ("UPGradWeighting", {}, "torchjd has: .*torchjd.UPGrad"),
        ("", {}, "torchjd has: .*torchjd.UPGrad"),
        ("CAGrad", {"d": 1}, "'torchjd.CAGrad' has no option 'd'; it has: c, norm_eps"),
        ("CAGrad", {"c": -1}, "torchjd.CAGrad does not take .*must be non-negative"),
        ("CAGrad", {"c": "x"}, "torchjd.CAGrad does not take"),
        ("FairGrad", {}, "rule 'torchjd.FairGrad' needs the option 'alpha'"),
        ("UPGrad", {"pref_vector": [1.0, 1.0, 1.0]}, "torchjd.UPGrad does not take"),
        ("NashMTL", {"n_tasks": 3}, "torchjd.NashMTL does not take"),
    ],
)
def test_what_torchjd_cannot_do_here_is_told(name, options, message):
    if name == "NashMTL":
        pytest.importorskip("ecos", reason=NO_ECOS)
    with pytest.raises(ValueError, match=message):
        find_rule(f"torchjd.{name}", options)


def test_without_torchjd_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(
        ValueError, match=r"torchjd is missing; .*pip install -e '.\[torchjd\]'"
    ):
        find_rule("torchjd.UPGrad")


def test_without_a_solver_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("torchjd._mixins.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"quadprog.*pip install -e '.\[torchjd\]'"):
        find_rule("torchjd.UPGrad")


def test_vanishing_and_nonfinite_steps_are_not_remembered():
    steps = [products(*pair) for pair in pairs(3)]
    expected = find_rule("torchjd.GradVac")
    rule = find_rule("torchjd.GradVac")
    for step in steps:
        assert rule(*step) == expected(*step)
        assert rule(*map(tensor, (0.0, 4.0, 0.0))) == (1, 1)
        assert rule(*map(tensor, (float("nan"), 4.0, float("nan")))) == (1, 1)


def test_an_aggregator_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    find_rule("torchjd.PCGrad")(*products(*pairs(1)[0]))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("theirs", "ours"), [("PCGrad", "pcgrad"), ("ConFIG", "config"), ("MGDA", "mgda")]
)
def test_a_step_by_torchjd_is_a_step_by_ours(theirs, ours):
    def parameters(rule):
        torch.manual_seed(0)
        trunk, x = torch.nn.Linear(4, 3).double(), torch.randn(5, 4, dtype=torch.float64)
        gradients = TwoTaskGradients(
            {"trunk." + n: p for n, p in trunk.named_parameters()}.items(), ["trunk"], rule
        )
        losses = trunk(x).sin().sum(1), (trunk(x) - 2).square().sum(1)
        gradients.accumulate(TwoTaskLosses(*map(TaskLoss.of, losses)))
        gradients.combine()
        return [p.grad for p in trunk.parameters()]

    for got, expected in zip(parameters(f"torchjd.{theirs}"), parameters(ours)):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)

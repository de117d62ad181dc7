"""Norms and products: right at 10^8 elements, never TF32, the same on every rank."""

import pytest
import torch
from forked_ranks import of_ranks
from test_gradients import problem
from torch.utils._python_dispatch import TorchDispatchMode

from unified_se_ss.gradients import RULES, TaskLoss, TwoTaskGradients, TwoTaskLosses

CHUNK = 2**22

# What TF32 (and on the CPU, bfloat16) may stand in for: products of matrices and
# convolutions. `dot` is among them, as BLAS may sum it as it likes.
REPLACEABLE = ("mm", "bmm", "mv", "dot", "matmul", "linear", "einsum", "conv", "gemm")


def gradients_of(size, seed):
    """g_a and g_m of all magnitudes from 1e-3 to 1e3, not centred, at an acute angle."""
    generator = torch.Generator().manual_seed(seed)
    auxiliary, main = torch.empty(size), torch.empty(size)
    for a, m in zip(auxiliary.split(CHUNK), main.split(CHUNK)):
        scale = 10 ** torch.empty(len(m)).uniform_(-3, 3, generator=generator)
        m.normal_(0.3, 1.0, generator=generator).mul_(scale)
        a.normal_(0.1, 1.0, generator=generator).mul_(scale).add_(m, alpha=0.5)
    return auxiliary, main


def exact(x, y):
    """<x, y> in float64, chunk by chunk."""
    chunks = zip(x.split(CHUNK), y.split(CHUNK))
    return float(sum(one.double() @ other.double() for one, other in chunks))


def combined(auxiliary, main, **options):
    """What the two gradients of one tensor are found to be."""
    parameter = torch.nn.Parameter(torch.zeros_like(main))
    gradients = TwoTaskGradients([("weight", parameter)], ["weight"], **options)
    one = torch.ones(())
    # The product of the vectors has them as gradients, and needs no memory beside.
    losses = (TaskLoss(parameter.dot(g), one) for g in (main, auxiliary))
    gradients.accumulate(TwoTaskLosses(*losses))
    return gradients.combine(), parameter.grad


@pytest.mark.slow
def test_norms_and_products_in_fp32_of_a_hundred_million_elements(capsys):
    auxiliary, main = gradients_of(10**8, seed=0)
    expected = {
        "auxiliary_squared": exact(auxiliary, auxiliary),
        "main_squared": exact(main, main),
        "product": exact(auxiliary, main),
    }
    found, _ = combined(auxiliary, main)
    errors = {
        name: abs(float(getattr(found, name)) - value) / abs(value)
        for name, value in expected.items()
    }
    with capsys.disabled():
        print("\n" + ", ".join(f"{name}: {error:.1e}" for name, error in errors.items()))
    assert max(errors.values()) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("cosine", [1e-6, -1e-6])
def test_the_branch_is_right_where_the_angle_is_nearly_a_right_one(cosine):
    """Ten million elements: what is left of the sum is 1e-6 of the norms."""
    auxiliary, main = gradients_of(10**7, seed=1)
    squared = exact(main, main)
    auxiliary = auxiliary.double() - exact(auxiliary, main) / squared * main.double()
    length = float(auxiliary.norm())
    auxiliary = (auxiliary + cosine * length / squared**0.5 * main.double()).float()
    found, _ = combined(auxiliary, main)
    assert float(found.product) == pytest.approx(exact(auxiliary, main), rel=0.05)
    assert (float(found.main_weight) > 1) == (cosine < 0)


class Operations(TorchDispatchMode):
    """Names of the operations that took a tensor of 32 bits or fewer."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = torch.utils._pytree.tree_leaves((args, kwargs))
        tensors = [x for x in tensors if isinstance(x, torch.Tensor)]
        if any(x.is_floating_point() and x.dtype != torch.float64 for x in tensors):
            self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", RULES)
def test_no_operation_that_tf32_could_replace(rule):
    """By construction: products are elementwise, sums are sums; rules are in float64."""
    network, *batch = problem(dtype=torch.float32)
    gradients = TwoTaskGradients(network.named_parameters(), ["trunk"], rule=rule)
    losses = map(TaskLoss.of, network.losses(*batch))
    gradients.accumulate(TwoTaskLosses(*losses))
    with Operations() as operations:
        gradients.combine()
    assert {"mul", "sum"} <= operations.names  # it looked
    found = {n for n in operations.names if any(part in n for part in REPLACEABLE)}
    assert not found


def test_flags_of_precision_change_no_bit():
    auxiliary, main = gradients_of(100_000, seed=2)
    before = torch.get_float32_matmul_precision()
    results = []
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            found, gradient = combined(-auxiliary, main)
            results.append(torch.cat([found.product, found.main_squared, gradient]))
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


TENSORS, SIZE = 200, 3000


def orthogonal_pair(generator):
    """g_a and g_m, each [TENSORS, SIZE], with products that are zero but for rounding."""
    main = torch.randn(TENSORS, SIZE, generator=generator, dtype=torch.float64)
    auxiliary = torch.randn(TENSORS, SIZE, generator=generator, dtype=torch.float64)
    along = (auxiliary * main).sum(1, keepdim=True) / main.square().sum(1, keepdim=True)
    return (auxiliary - along * main).float(), main.float()


def shares(gradient, generator):
    """A gradient as what each of two ranks has of it; their sum is it, but for rounding."""
    first = torch.randn(gradient.shape, generator=generator)
    return first, gradient - first


def combined_on(rank):
    """What a rank finds and does with its share of gradients."""
    generator = torch.Generator().manual_seed(0)
    auxiliary, main = (
        shares(gradient, generator)[rank] for gradient in orthogonal_pair(generator)
    )
    parameters = [torch.nn.Parameter(torch.zeros(SIZE)) for _ in range(TENSORS)]
    network = torch.nn.ParameterList(parameters)
    gradients = TwoTaskGradients(network.named_parameters(), map(str, range(TENSORS)))
    stacked = torch.stack(parameters)
    losses = (TaskLoss.of((stacked * g).sum().view(1)) for g in (main, auxiliary))
    gradients.accumulate(TwoTaskLosses(*losses))
    found = gradients.combine()
    return {**found._asdict(), "combined": torch.stack([p.grad for p in parameters])}


def test_two_ranks_take_the_same_branch_where_rounding_decides():
    """Whether <g_a, g_m> is below zero is decided by rounding here."""
    one, other = of_ranks(combined_on)
    norms = (one["auxiliary_squared"] * one["main_squared"]).sqrt()
    assert (one["product"].abs() < 1e-6 * norms).all()  # rounding does decide
    assert 20 < (one["product"] < 0).sum() < 180
    for name, value in one.items():
        assert torch.equal(value, other[name]), name

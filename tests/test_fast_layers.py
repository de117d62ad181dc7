"""Attention, and a layer behind a norm: the same values and gradients, kept leaner."""

import pytest
import torch
from torch import nn

from unified_se_ss.networks import Transformer, transformer
from unified_se_ss.networks.transformer import attend, normed


def found(function, *tensors):
    """What a function of tensors gives, and the gradients of a fixed sum of it."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    output = function(*tensors)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    gradients = torch.autograd.grad((output * weight.to(output)).sum(), tensors)
    return [output.detach(), *gradients]


def furthest(ours, exact):
    """Largest relative difference in length."""
    return max(((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, exact))


# ------------------------------------------------------------------ behind a norm


def behind_a_norm(width=64, outputs=96):
    torch.manual_seed(2)
    norm, layer = nn.LayerNorm(width), nn.Linear(width, outputs)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm, layer


def both_ways(x, bf16=False, parts=None):
    """What norm and layer give one after the other and as one, each with its gradients."""
    norm, layer = parts or behind_a_norm(x.shape[-1])
    tensors = [x, *norm.parameters(), *layer.parameters()]
    found = []
    for function in (lambda x: layer(norm(x)), lambda x: normed(norm, layer, x)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = function(x)
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
        wanted = [t for t in tensors if t.requires_grad]
        found.append(
            [output, *torch.autograd.grad(output, wanted, weight.to(output.dtype))]
        )
    return found


@pytest.mark.parametrize("shape", [(700, 64), (7, 100, 64), (2, 3, 64)])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_layer_behind_a_norm_is_the_two_of_them_to_the_last_bit(shape, bf16):
    for dtype in (torch.float32, torch.bfloat16) if bf16 else (torch.float32,):
        apart, ours = both_ways(torch.randn(shape).to(dtype).requires_grad_(), bf16)
        assert [x.dtype for x in ours] == [x.dtype for x in apart]
        assert all(torch.equal(a, b) for a, b in zip(ours, apart))


def test_gradients_behind_a_norm_are_those_of_differences():
    norm, layer = (module.double() for module in behind_a_norm(8, 5))
    x = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    names = [*norm.parameters(), *layer.parameters()]
    assert torch.autograd.gradcheck(lambda *_: normed(norm, layer, x), (x, *names))


@pytest.mark.parametrize("frozen", ["x", "norm", "layer", "all but x"])
def test_behind_a_norm_where_something_is_not_trained(frozen):
    norm, layer = behind_a_norm()
    norm.requires_grad_(frozen not in ("norm", "all but x"))
    layer.requires_grad_(frozen not in ("layer", "all but x"))
    x = torch.randn(700, 64, requires_grad=frozen != "x")
    apart, ours = both_ways(x, parts=(norm, layer))
    assert all(torch.equal(a, b) for a, b in zip(ours, apart))


def test_behind_a_norm_only_the_input_is_kept():
    norm, layer = behind_a_norm()
    x = torch.randn(7, 100, 64, requires_grad=True)
    places = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: places.add(t.data_ptr()) or t, lambda t: t
    ):
        normed(norm, layer, x)
    of_parameters = {p.data_ptr() for p in (*norm.parameters(), *layer.parameters())}
    assert places - of_parameters == {x.data_ptr()}


def test_where_others_read_the_graph_norm_and_layer_are_torchs_own(monkeypatch):
    norm, layer = behind_a_norm()
    x = torch.randn(700, 64)
    network = Transformer(n_features=64, layers=1, heads=4, feed_forward=64)
    graph = torch.jit.trace(network, x.unsqueeze(0)).inlined_graph
    assert str(graph).count("aten::layer_norm") == 3
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert "Normed" not in str(normed(norm, layer, x).grad_fn)


# ------------------------------------------------------------------ attention


def heads(batch, length, dtype=torch.float32):
    torch.manual_seed(1)
    joined = torch.randn(batch, length, 3 * 4 * 16).to(dtype)
    return joined.unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4).unbind()


def exact_attention(query, key, value, mask=None):
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
    return torch.softmax(scores, -1) @ value


@pytest.mark.parametrize("batch, length", [(3, 1), (5, 34), (1, 90)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_attention_in_parts_is_attention(monkeypatch, batch, length, masked, dtype, bound):
    monkeypatch.setattr(transformer, "WEIGHTS_AT_ONCE", 3 * length**2)
    tensors = heads(batch, length, dtype)
    mask = torch.arange(length) < torch.tensor([[max(1, length - 3)]] * batch)
    mask = mask if masked else None
    exact = found(lambda *x: exact_attention(*x, mask), *(x.double() for x in tensors))
    ours = found(lambda *x: transformer._MatrixAttention.apply(*x, mask), *tensors)
    assert furthest(ours, exact) < bound or length == 1  # gradients of which are zero
    assert furthest(ours[:1], exact[:1]) < bound


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_as_exact_as_bf16_is(masked):
    tensors = heads(4, 60, torch.bfloat16)
    mask = torch.arange(60) < torch.tensor([[60], [40], [5], [1]]) if masked else None
    exact = found(lambda *x: exact_attention(*x, mask), *(x.double() for x in tensors))
    assert furthest(found(lambda *x: attend(*x, mask), *tensors), exact) < 0.01


def test_attention_in_bf16_keeps_no_weights():
    tensors = [x.requires_grad_() for x in heads(1, 400, torch.bfloat16)]
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: sizes.append(x.numel()), lambda x: x
    ):
        attend(*tensors)
    assert sizes and max(sizes) == tensors[0].numel()


# ------------------------------------------------------------------ a whole network

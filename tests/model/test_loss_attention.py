"""The two hand-made derivatives, loss and CPU attention, against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xmodel.model import attention, loss
from xmodel.model.attention import causal_attention
from xmodel.model.loss import linear_cross_entropy


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 40),
    vocab=st.integers(2, 50),
    ignored=st.floats(0, 1),
    rows=st.integers(1, 50),
    scale=st.sampled_from([0.1, 5.0, 60.0]),
)
def test_loss_and_gradients_equal_cross_entropy(
    tokens: int, vocab: int, ignored: float, rows: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(tokens * 1000 + vocab)
    x = torch.randn(tokens, 12, generator=generator)
    weight = torch.randn(vocab, 12, generator=generator) * scale
    targets = torch.randint(vocab, (tokens,), generator=generator)
    targets[torch.rand(tokens, generator=generator) < ignored] = -100
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "_rows_per_chunk", lambda *_: rows)
        for function in (linear_cross_entropy, lambda x, w, t: F.cross_entropy(F.linear(x, w), t, reduction="sum")):
            leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
            value = function(*leaves, targets)
            (value * 0.37).backward()
            results.append((value.detach(), *(leaf.grad for leaf in leaves)))
        with torch.no_grad():
            torch.testing.assert_close(linear_cross_entropy(x, weight, targets), results[0][0])
    for own, expected in zip(*results, strict=True):
        assert own is not None
        assert expected is not None
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("rows", [2, 64])
def test_z_loss_is_in_the_gradient_and_not_in_the_value(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """PaLM's definition through plain autograd; positions without a target carry neither loss."""
    monkeypatch.setattr(loss, "_rows_per_chunk", lambda *_: rows)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(7, 5, generator=generator) * 3, torch.randn(11, 5, generator=generator)
    targets = torch.tensor([3, -100, 0, 10, -100, 7, 7])
    own, plain = [[leaf.clone().requires_grad_() for leaf in (x, weight)] for _ in range(2)]
    value = linear_cross_entropy(*own, targets, 0.05)
    value.backward()
    logits = F.linear(*plain)
    cross_entropy = F.cross_entropy(logits, targets, reduction="sum")
    (cross_entropy + 0.05 * (logits.logsumexp(1).square() * (targets >= 0)).sum()).backward()
    torch.testing.assert_close(value.detach(), cross_entropy.detach())
    for ours, theirs in zip(own, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_loss_is_exact_where_the_target_is_hopeless() -> None:
    """The target's probability underflows in float32; its loss must not become infinite."""
    x, weight = torch.ones(1, 1), torch.tensor([[500.0], [0.0]])
    assert linear_cross_entropy(x, weight, torch.tensor([1])).item() == 500.0


def test_loss_of_nothing_is_zero_and_nan_is_not_hidden() -> None:
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    value = linear_cross_entropy(x, weight, torch.full((3,), -100))
    value.backward()
    assert value.item() == 0
    assert x.grad is not None
    assert not x.grad.any()
    assert linear_cross_entropy(torch.full((1, 4), torch.nan), weight, torch.tensor([0])).isnan()


def test_the_logits_of_a_batch_never_exist_at_once() -> None:
    """The largest tensor that any operator of loss and gradient makes is far below tokens times vocabulary."""
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor)), 0)
            return out

    tokens, vocab, width = 1024, 32_000, 8
    x = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(vocab, width, requires_grad=True)
    with Sizes():
        linear_cross_entropy(x, weight, torch.randint(vocab, (tokens,))).backward()
    assert largest >= 64 * vocab  # a chunk of rows
    assert largest <= tokens * vocab / 8


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [2, 63, 64, 65, 200])
def test_blocked_attention_is_attention(heads: int, kv_heads: int, length: int) -> None:
    """The CPU's bfloat16 path errs no more than PyTorch's kernel does in bfloat16, measured against float32."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(2, heads, length, 16), (2, kv_heads, length, 16), (2, kv_heads, length, 16)]
    exact = [torch.randn(shape, generator=generator) * 1.5 for shape in shapes]
    grad = torch.randn(shapes[0], generator=generator)

    def run(dtype: torch.dtype, own: bool) -> list[torch.Tensor]:
        q, k, v = leaves = [x.to(dtype, copy=True).requires_grad_() for x in exact]
        out = (
            causal_attention(q, k, v)
            if own
            else F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
        )
        out.backward(grad.to(dtype))
        return [out.detach().float(), *(leaf.grad.float() for leaf in leaves if leaf.grad is not None)]

    reference = run(torch.float32, own=False)
    for expected, own, torchs in zip(
        reference, run(torch.bfloat16, own=True), run(torch.bfloat16, own=False), strict=True
    ):
        error, allowed = (own - expected).norm() / expected.norm(), (torchs - expected).norm() / expected.norm()
        assert error < 0.02
        assert error < 2 * allowed + 1e-3


@pytest.mark.parametrize("batch", [1, 2])
def test_blocked_attention_operator_is_well_formed(batch: int) -> None:
    """Fake implementation, strides and autograd registration are what torch.compile relies on."""
    q, k, v = (torch.randn(batch, 70, heads, 8).bfloat16().transpose(1, 2) for heads in (4, 2, 2))
    torch.library.opcheck(attention.blocked_attention, (q, k, v), test_utils=("test_schema", "test_faketensor"))
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(attention.blocked_attention, tuple(leaves), test_utils=("test_autograd_registration",))
    torch.library.opcheck(
        attention.blocked_attention_backward, (q, q, k, v), test_utils=("test_schema", "test_faketensor")
    )

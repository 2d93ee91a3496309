"""Document-masked attention: a packed window is worth as much as each of its documents by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from xmodel.model import attention, documents
from xmodel.model.documents import block_mask, document_attention, document_mask, document_starts, model_inputs
from xmodel.model.transformer import Compute, Transformer, compile_model
from xmodel.recipe.settings import Model

END = 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3))
def test_starts_are_counted_as_a_person_would(ends):
    tokens = torch.where(torch.tensor(ends), END, 7)
    for row, starts in zip(ends, document_starts(tokens, END).tolist(), strict=True):
        first = 0
        for position, (end, start) in enumerate(zip(row, starts, strict=True)):
            assert start == first
            first = position + 1 if end else first


def test_inputs_of_a_window():
    rows = torch.tensor([[1, 5, 6, END, 1, 7, END, -100, -100]])
    plain = model_inputs(rows)
    assert plain["tokens_BT"].tolist() == [[1, 5, 6, END, 1, 7, END, 0]]
    assert plain["targets_BT"].tolist() == [[5, 6, END, 1, 7, END, -100, -100]]
    masked = model_inputs(rows, END)
    assert masked["targets_BT"].tolist() == [[5, 6, END, -100, 7, END, -100, -100]]
    assert masked["starts_BT"].tolist() == [[0, 0, 0, 0, 4, 4, 4, 7]]


def packed(lengths: list[int], length: int, seed: int) -> torch.Tensor:
    """One row of length + 1: documents `1 ... 2` of these lengths and padding behind them."""
    generator = torch.Generator().manual_seed(seed)
    row = torch.full((length + 1,), -100)
    at = 0
    for size in lengths:
        row[at : at + size] = torch.randint(3, 50, (size,), generator=generator)
        row[at], row[at + size - 1] = 1, END
        at += size
    assert at <= length + 1
    return row


ROWS = [[40, 3, 2, 70, 66, 20], [200], [10, 180], [64, 64, 65], [2] * 30]
LENGTH = 200


def tiny(dtype: torch.dtype) -> Transformer:
    shape = Model(layers=2, heads=4, kv_heads=2, hidden=32, ffn=48, context_length=LENGTH, vocab_size=50, init_std=0.2)
    model = Transformer(shape)
    model.init_weights(0)
    model.compute_dtype = dtype
    return model.train()


def losses(model: Transformer, batches: list[dict[str, torch.Tensor]]) -> tuple[float, torch.Tensor]:
    """Summed loss, and all gradients in one vector."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(batch["tokens_BT"], targets_BT=batch["targets_BT"], starts_BT=batch.get("starts_BT"))
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("dtype", "compiled"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_a_packed_window_is_its_documents_apart(dtype, compiled):
    """Loss and gradients equal those of every document in a forward pass of its own, without any mask."""
    model = tiny(getattr(torch, dtype))
    rows = torch.stack([packed(lengths, LENGTH, seed) for seed, lengths in enumerate(ROWS)])
    apart = []
    for row, lengths in zip(rows, ROWS, strict=True):
        at = 0
        for size in lengths:
            apart.append(model_inputs(row[None, at : at + size]))
            at += size
    expected, expected_gradient = losses(model, apart)
    exact, exact_gradient = losses(tiny(torch.float32), apart)
    if compiled:
        compile_model(model)
    found, gradient = losses(model, [model_inputs(rows, END)])
    assert sum(batch["targets_BT"].numel() for batch in apart) == (model_inputs(rows, END)["targets_BT"] >= 0).sum()
    if dtype == "float32":
        assert found == pytest.approx(expected, rel=1e-6)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    else:  # as near to float32 as bfloat16 is without packing
        allowed = (expected_gradient - exact_gradient).norm() / exact_gradient.norm()
        assert found == pytest.approx(exact, rel=2e-3)
        assert (gradient - exact_gradient).norm() / exact_gradient.norm() < 1.3 * allowed + 1e-3
    unmasked, _ = losses(model, [model_inputs(rows)])
    assert abs(unmasked - expected) > 0.01 * expected, "the mask makes a difference here"


def test_a_window_of_one_document_needs_no_mask():
    model = tiny(torch.bfloat16)
    rows = torch.stack([packed([LENGTH + 1], LENGTH, seed) for seed in range(2)])
    plain, masked = losses(model, [model_inputs(rows)]), losses(model, [model_inputs(rows, END)])
    assert plain[0] == masked[0]
    assert torch.equal(plain[1], masked[1])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=12),
    st.integers(1, 3),
    st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    st.integers(0, 1000),
)
def test_the_blocked_kernel_masks_documents(sizes, batch, heads, seed):
    """Against PyTorch's own attention with the mask written out, in float32: outputs and the three gradients."""
    generator = torch.Generator().manual_seed(seed)
    length = min(sum(sizes), 260)
    tokens = torch.full((batch, length), 7)
    for row in tokens:
        ends = torch.tensor(sizes)[torch.randperm(len(sizes), generator=generator)].cumsum(0) - 1
        row[ends[ends < length]] = END
    starts = document_starts(tokens, END)
    leaves = [torch.randn(batch, h, length, 8, generator=generator) for h in (heads[0], heads[1], heads[1])]
    grad = torch.randn(leaves[0].shape, generator=generator)
    results = []
    for mask in (starts, document_mask(starts, torch.float32, compiled=False)):
        q, k, v = inputs = [x.clone().requires_grad_() for x in leaves]
        out = document_attention(q, k, v, mask)
        out.backward(grad)
        results.append([out.detach(), *(x.grad for x in inputs)])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_blocks_begin_at_the_earliest_key_of_their_documents(monkeypatch):
    """Work is saved: where a block of queries begins with a document, no key before it is read."""
    read = []
    plain = attention._probabilities
    monkeypatch.setattr(attention, "_probabilities", lambda *a: read.append((a[2], a[4])) or plain(*a))
    q, k, v = (torch.randn(1, 2, 192, 8) for _ in range(3))
    tokens = torch.full((1, 192), 7)
    tokens[0, [63, 150]] = END
    document_attention(q, k, v, document_starts(tokens, END))
    assert read == [(0, 64), (64, 128), (64, 192)]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_the_block_mask_of_flex_attention_is_the_same_mask():
    """FlexAttention runs compiled on CUDA; here its eager form says that the mask means the same."""
    rows = torch.stack([packed(lengths, LENGTH, seed) for seed, lengths in enumerate(ROWS)])
    starts = model_inputs(rows, END)["starts_BT"]
    q, k, v = (torch.randn(len(ROWS), heads, LENGTH, 16) for heads in (4, 2, 2))
    expected = document_attention(q, k, v, document_mask(starts, torch.float32, compiled=False))
    torch.testing.assert_close(document_attention(q, k, v, block_mask(starts)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_block_masks_compile_once():
    """The compiled block takes any batch's block mask and any layer as they come: one graph serves all."""
    model, counter = tiny(torch.float32), CompileCounter()
    compiled = torch.compile(lambda block, *inputs: block(*inputs), dynamic=False, backend=counter)
    x = torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(0))
    rotary = model.rotary[:, :LENGTH]
    with torch.no_grad():
        for seed in range(3):
            rows = torch.stack([packed(ROWS[seed + row], LENGTH, row) for row in range(2)])
            starts = model_inputs(rows, END)["starts_BT"]
            expected_mask = document_mask(starts, torch.float32, compiled=False)
            for block in model.model.layers:
                found = compiled(block, x, rotary, Compute(torch.float32), 0, None, block_mask(starts))
                expected = block(x, rotary, Compute(torch.float32), 0, None, expected_mask)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1


@pytest.mark.parametrize(("device", "compiled", "kind"), [("meta", True, "BlockMask"), ("meta", False, "Tensor")])
def test_the_kernel_follows_from_the_device(monkeypatch, device, compiled, kind):
    monkeypatch.setattr(documents, "block_mask", lambda starts: "BlockMask")
    found = document_mask(torch.zeros(2, 8, dtype=torch.int32, device=device), torch.bfloat16, compiled)
    assert (found if isinstance(found, str) else type(found).__name__) == kind


def test_the_operator_with_documents_is_well_formed():
    q, k, v = (torch.randn(2, 70, heads, 8).bfloat16().transpose(1, 2) for heads in (4, 2, 2))
    starts = document_starts(torch.randint(5, (2, 70)), END)
    torch.library.opcheck(attention.blocked_attention, (q, k, v, starts), test_utils=("test_schema", "test_faketensor"))
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(attention.blocked_attention, (*leaves, starts), test_utils=("test_autograd_registration",))
    torch.library.opcheck(
        attention.blocked_attention_backward, (q, q, k, v, starts), test_utils=("test_schema", "test_faketensor")
    )

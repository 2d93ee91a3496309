"""Decoding in our own kernels: right, the same for a row in any company, and without a trace elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xmodel.errors import UserError
from xmodel.inference import cpu_products, fast
from xmodel.inference.batch import Batch, Row
from xmodel.inference.fast import HugePages, Int8Weight, prepare
from xmodel.model.cache import Layout, Shared
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Model

SHAPES = {
    "groups of 2": {},
    "groups of 9, QK-norm": {"hidden": 144, "heads": 9, "kv_heads": 1, "qk_norm": True},
    "no groups, tied": {"hidden": 64, "heads": 2, "kv_heads": 2, "tied_embeddings": True},
    "odd sizes": {"hidden": 42, "heads": 3, "kv_heads": 1, "ffn": 37},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make(dtype: torch.dtype = torch.float32, **shape) -> Transformer:
    """A random model whose parameters are numbers of bfloat16, so that models of both dtypes are the same model."""
    sizes: dict[str, Any] = {"layers": 2, "heads": 4, "kv_heads": 2, "hidden": 32, "ffn": 48, "vocab_size": 101} | shape
    model = Transformer(Model(**({"context_length": 192, "position_table": 192, "init_std": 0.15} | sizes)))
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().to(dtype)
    model.compute_dtype = dtype
    return model.eval()


def multiply(kind: int, weights_OI: Tensor, scales_O: Tensor | None, x_NI: Tensor) -> Tensor:
    return fast.multiply(
        kind, (weights_OI.data_ptr(), scales_O.data_ptr() if scales_O is not None else 0), len(weights_OI), x_NI
    )


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["fp32", "bf16", "int8"]),
    dtype=st.sampled_from(["fp32", "bf16"]),
    rows=st.integers(1, 21),
    outputs=st.integers(1, 40),
    size=st.integers(1, 200),
    seed=st.integers(0, 2**31),
)
def test_products_are_right_and_the_same_alone(kind, dtype, rows, outputs, size, seed) -> None:
    draw = torch.Generator().manual_seed(seed)
    as_dtype = DTYPES[dtype]
    weights_OI, x_NI = torch.randn(outputs, size, generator=draw), torch.randn(rows, size, generator=draw).to(as_dtype)
    if kind == "int8":
        quantised = Int8Weight(weights_OI, HugePages(weights_OI.numel()))
        stored, scales_O, number = quantised.integers_OI, quantised.scales_O, cpu_products.INT8
        exact_OI = stored.double() * scales_O.double()[:, None]
        assert bool(((exact_OI - weights_OI).abs() <= scales_O[:, None] * 0.5001).all())
        assert int(stored.abs().amax(1).min()) == 127
    else:
        stored, scales_O = weights_OI.to(as_dtype), None
        number = cpu_products.FLOAT32 if as_dtype == torch.float32 else cpu_products.BFLOAT16
        exact_OI = stored.double()
    found_NO = multiply(number, stored, scales_O, x_NI)
    exact_NO, terms_NO = x_NI.double() @ exact_OI.T, x_NI.double().abs() @ exact_OI.abs().T
    rounding = exact_NO.abs() * (2**-8 if as_dtype == torch.bfloat16 else 0)
    assert bool(((found_NO.double() - exact_NO).abs() <= rounding + 2e-6 * terms_NO).all())
    some = slice(rows // 3, rows // 3 + 1 + seed % rows)
    assert torch.equal(multiply(number, stored, scales_O, x_NI[some]), found_NO[some])


def run(model: Transformer, texts: list[list[int]], steps: int) -> list[list[Tensor]]:
    """Each text's logits after its prompt and after each of `steps` more tokens, the texts in one batch."""
    batch: Batch[Row] = Batch(model, len(texts), 192)
    found: list[list[Tensor]] = []
    for text in texts:
        row = Row(text[:-steps], steps)
        while not (done := batch.prefill([row])):
            pass
        found.append([done[0][1]])
    for step in range(steps):
        for row, text in zip(batch.going, texts, strict=True):
            row.last = text[step - steps]
        for logits, logits_V in zip(found, batch.step(), strict=True):
            logits.append(logits_V)
    return found


def some_texts(count: int) -> list[list[int]]:
    draw = np.random.default_rng(1)
    return [draw.integers(0, 101, size).tolist() for size in draw.integers(6, 90, count)]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_equal_those_of_the_plain_path(shape) -> None:
    texts = some_texts(5)
    plain = torch.stack([v for row in run(make(**SHAPES[shape]), texts, 4) for v in row])
    ours = torch.stack([v for row in run(prepare(make(**SHAPES[shape])), texts, 4) for v in row])
    assert float((ours - plain).abs().max()) < 2e-5 * float(plain.abs().max())
    errors = []
    for model in (make(torch.bfloat16, **SHAPES[shape]), prepare(make(torch.bfloat16, **SHAPES[shape]))):
        found = torch.stack([v for row in run(model, texts, 4) for v in row[1:]])
        errors.append(float((found.float() - plain.view(5, 5, -1)[:, 1:].flatten(0, 1)).norm() / plain.norm()))
    assert errors[1] < 1.1 * errors[0]  # the residual stream is in float32: nearer to the truth, if anything


@pytest.mark.parametrize("weights", ["auto", "int8"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_company(dtype, weights, monkeypatch) -> None:
    model, texts = prepare(make(DTYPES[dtype], **SHAPES["groups of 9, QK-norm"]), weights), some_texts(11)
    together = run(model, texts, 3)
    for number in (0, 4, 10):
        for found, alone in zip(together[number], run(model, [texts[number]], 3)[0], strict=True):
            assert torch.equal(found, alone)
    few = run(model, texts[3:6], 3)
    assert all(torch.equal(a, b) for rows in zip(together[3:6], few, strict=True) for a, b in zip(*rows, strict=True))
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            again = run(model, texts[3:6], 3)
            assert all(
                torch.equal(a, b) for rows in zip(again, few, strict=True) for a, b in zip(*rows[:2], strict=True)
            )
    finally:
        torch.set_num_threads(before)


MODELS = {
    (dtype, weights): prepare(make(DTYPES[dtype], context_length=640, position_table=640), weights)
    for dtype in DTYPES
    for weights in ("auto", "int8")
}


@pytest.mark.parametrize(("dtype", "weights"), MODELS)
@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 7, 40, 64, 255, 256, 257, 600]), min_size=1, max_size=8),
    late=st.integers(0, 4),
)
def test_a_prompt_has_the_same_bits_in_any_company(dtype, weights, lengths: list[int], late: int) -> None:
    """Prompts of all lengths, of which some come while others are half done or already answered."""
    model = MODELS[dtype, weights]

    def logits(chosen: list[int], late: int) -> dict[int, list[Tensor]]:
        batch: Batch[Row] = Batch(model, len(lengths), 640)
        rows = {n: Row([(n * 31 + place * place) % 101 for place in range(lengths[n])], 8) for n in chosen}
        numbers, found = {id(row): n for n, row in rows.items()}, {n: [] for n in chosen}
        turn = 0
        while not all(len(each) >= 3 for each in found.values()):
            here = list(rows.values())[: len(chosen) - late + turn]
            if prompts := [row for row in here if row.length < len(row.prompt)]:
                for row, logits_V in batch.prefill(prompts):
                    found[numbers[id(row)]].append(logits_V)
                    row.last = int(logits_V.argmax())
            if going := [row for row in batch.going if row.last >= 0]:
                for row, logits_V in zip(going, batch.step(), strict=True):
                    found[numbers[id(row)]].append(logits_V)
                    row.last = int(logits_V.argmax())
                    if len(found[numbers[id(row)]]) == 4:
                        batch.remove(row)
            turn += 1
        return found

    together = logits(list(range(len(lengths))), min(late, len(lengths) - 1))
    for n in {0, len(lengths) // 2, len(lengths) - 1}:
        alone = logits([n], 0)[n]
        assert all(torch.equal(a, b) for a, b in zip(alone[:3], together[n][:3], strict=True))


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_has_the_same_bits_in_whatever_parts(dtype) -> None:
    model = prepare(make(DTYPES[dtype]))
    tokens = torch.arange(90)[None] % 101
    whole = model.hidden(tokens, model.new_cache(1, 90))
    cache = model.new_cache(1, 90)
    parts = [model.hidden(part, cache) for part in tokens.split([1, 30, 2, 57], dim=1)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    plain = make(DTYPES[dtype])
    assert float((plain.hidden(tokens) - whole).norm() / whole.norm()) < (1e-5 if dtype == "fp32" else 0.03)


@torch.no_grad()
@pytest.mark.parametrize("wanted", [[], [0], [1, 2, 7], [3, 40, 79, 89], list(range(90))], ids=len)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_wanted_states_are_those_of_all_and_the_cache_is_whole(dtype, shape, wanted) -> None:
    tokens_BT, wanted_W = (torch.arange(90) * 7 % 101).view(2, 45), torch.tensor(wanted, dtype=torch.int64)
    for model in (make(DTYPES[dtype], **SHAPES[shape]), prepare(make(DTYPES[dtype], **SHAPES[shape]))):
        whole, cache = (model.new_cache(2, 46) for _ in range(2))
        states_BTD = model.hidden(tokens_BT, whole)
        states_WD = model.hidden(tokens_BT, cache, wanted_W=wanted_W)
        assert torch.equal(states_WD, states_BTD.flatten(0, 1)[wanted_W])
        next_B1 = torch.tensor([[5], [6]])
        assert torch.equal(model.hidden(next_B1, cache), model.hidden(next_B1, whole))


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
def test_int8_prompts_are_those_of_the_rounded_weights(dtype) -> None:
    """The same weights as numbers, through PyTorch; with a cache and without one."""
    model, plain = prepare(make(DTYPES[dtype]), "int8"), make()
    for (_, module), (_, other) in zip(plain.named_modules(), model.named_modules(), strict=True):
        if isinstance(weight := getattr(other, "weight", None), Int8Weight):
            module.weight.copy_(weight.integers_OI * weight.scales_O[:, None])
    tokens = torch.arange(120).view(2, 60) % 101
    exact = plain(tokens)
    for found in (model(tokens), model(tokens, model.new_cache(2, 60))):
        assert float((found - exact).norm() / exact.norm()) < (1e-5 if dtype == "fp32" else 0.03)


class Nobody:
    """A pool whose threads never come."""

    def submit(self, *_: object) -> None: ...


def test_a_thread_that_never_comes_is_not_waited_for(monkeypatch) -> None:
    model, texts = prepare(make()), some_texts(2)
    right = run(model, texts, 2)
    monkeypatch.setattr(fast, "_pool", lambda process: Nobody())
    monkeypatch.setattr(fast.torch, "get_num_threads", lambda: 4)
    assert all(
        torch.equal(a, b) for rows in zip(right, run(model, texts, 2), strict=True) for a, b in zip(*rows, strict=True)
    )


@torch.no_grad()
def test_a_mask_with_holes_is_respected() -> None:
    plain, ours = make(), prepare(make())
    tokens = torch.arange(24).view(2, 12)
    found = []
    for model in (plain, ours):
        cache = model.new_cache(2, 16)
        model.hidden(tokens, cache)
        cache.length = 0
        seen_BS = torch.ones(2, 13, dtype=torch.bool)
        seen_BS[0, 3:7] = seen_BS[1, 9:] = False
        seen_BS[1, 8] = True
        layout = Layout(torch.tensor([[5], [8]]), seen_BS[:, None, None], torch.tensor([[12], [8]]))
        found.append(model.hidden(tokens[:, :1], cache, layout))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("own", [1, 70])
def test_shared_beginnings_are_read_where_they_lie(own: int) -> None:
    """Rows of two beginnings and of none, each with `own` keys of its own: as PyTorch's cascade, and as in one piece."""
    found = []
    for model in (make(), prepare(make())):
        draw = torch.Generator().manual_seed(3)
        stems, cache = [model.new_cache(1, 8), model.new_cache(1, 96)], model.new_cache(4, 160)
        for each in (*stems, cache):
            each.keys_LBKSC.normal_(generator=draw)
            each.values_LBKSC.normal_(generator=draw)
        behind_B = torch.tensor([5, 0, 90, 5])
        shared = [Shared(stems[0], 5, torch.tensor([0, 3])), Shared(stems[1], 90, torch.tensor([2]))]
        column_B1 = torch.full((4, 1), own - 1)
        seen_B1TS = torch.ones(4, 1, 1, own, dtype=torch.bool)
        layout = Layout(behind_B[:, None] + own - 1, seen_B1TS, column_B1, shared=shared)
        whole = model.new_cache(4, 192)
        for row, stem in ((0, stems[0]), (3, stems[0]), (2, stems[1])):
            whole.keys_LBKSC[:, row, :, : behind_B[row]] = stem.keys_LBKSC[:, 0, :, : behind_B[row]]
            whole.values_LBKSC[:, row, :, : behind_B[row]] = stem.values_LBKSC[:, 0, :, : behind_B[row]]
        for row, behind in enumerate(behind_B.tolist()):
            whole.keys_LBKSC[:, row, :, behind : behind + own] = cache.keys_LBKSC[:, row, :, :own]
            whole.values_LBKSC[:, row, :, behind : behind + own] = cache.values_LBKSC[:, row, :, :own]
        tokens_BT = torch.tensor([[7], [9], [7], [11]])
        found.append(model.hidden(tokens_BT, cache, layout))
        columns_B1 = layout.positions_BT
        in_one_piece = torch.arange(192) <= columns_B1[:, :, None, None]
        found.append(model.hidden(tokens_BT, whole, Layout(columns_B1, in_one_piece, columns_B1)))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_beyond_the_cache_are_refused() -> None:
    model = prepare(make())
    cache = model.new_cache(1, 8)
    one = torch.ones(1, 1, dtype=torch.int64)
    for position, column in ((3, 8), (3, -1), (192, 3)):
        layout = Layout(torch.tensor([[position]]), torch.ones(1, 1, 1, 8, dtype=torch.bool), torch.tensor([[column]]))
        with pytest.raises(IndexError, match="beyond"):
            model.hidden(one, cache, layout)
    cache.length = 8
    with pytest.raises(ValueError, match="position table or the cache"):
        model.hidden(one, cache)


def test_int8_is_near_and_frees_the_weights() -> None:
    texts = some_texts(4)
    shape: dict[str, Any] = {"hidden": 128, "ffn": 256, "heads": 4}
    exact = torch.stack([v for row in run(make(**shape), texts, 6) for v in row])
    model = prepare(make(**shape), "int8")
    found = torch.stack([v for row in run(model, texts, 6) for v in row])
    assert float((found - exact).norm() / exact.norm()) < 0.06
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if name.endswith("proj.weight")]
    assert "lm_head.weight" not in names


def test_int8_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(UserError, match="own family"):
        prepare(torch.nn.Linear(2, 2), "int8")
    with pytest.raises(UserError, match="for CPUs"):
        prepare(Transformer(make().config).to("meta"), "int8")
    with pytest.raises(UserError, match="it has to be auto or int8"):
        prepare(make(), "int4")
    other = torch.nn.Linear(2, 2)
    assert prepare(other) is other


def test_training_and_whole_texts_are_as_before() -> None:
    plain, ours = make(), prepare(make())
    tokens = torch.arange(60).view(2, 30)
    for model in (plain, ours):
        model.train()
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    for (name, a), b in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.equal(a.grad, b.grad), name
    with torch.no_grad():
        assert torch.equal(plain.hidden(tokens), ours.hidden(tokens))

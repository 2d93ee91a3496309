"""The engine: what a request gets is what it gets alone, whatever comes, goes and fails beside it."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_model

from xmodel.errors import UserError
from xmodel.inference.batch import Batch, Row
from xmodel.inference.engine import Closed, Delta, Engine, QueueFull
from xmodel.inference.fast import prepare
from xmodel.inference.sampling import Sampling, SettingError
from xmodel.inference.subjects import Subject
from xmodel.model.transformer import Transformer

CONTEXT = 640  # more than one chunk of a prompt


@pytest.fixture(scope="module")
def subject(tokenizer) -> Subject:
    model = make_model(tokenizer.vocab_size, context=CONTEXT)
    return Subject(model, tokenizer, True, "tiny", None, {})


@pytest.fixture(scope="module")
def prepared(tokenizer) -> Subject:
    """With our kernels, which take several prompts at once."""
    model = prepare(make_model(tokenizer.vocab_size, context=CONTEXT))
    return Subject(model, tokenizer, True, "tiny", None, {})


def answer(engine: Engine, prompt: list[int], asked: Sampling) -> tuple[str, list[int], str | None]:
    return collect(list(engine.stream(prompt, asked)))


def collect(deltas: list[Delta]) -> tuple[str, list[int], str | None]:
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    ids = [token.id for delta in deltas for token in delta.tokens]
    return "".join(delta.text for delta in deltas), ids, deltas[-1].finish


REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 600),  # tokens of the prompt
        st.integers(1, 25),  # new ones
        st.sampled_from([0.0, 0.0, 1.0]),
        st.integers(0, 3),  # seed
        st.sampled_from([None, None, None, 0, 2]),  # cancelled after so many parts
        st.sampled_from([0.0, 0.0, 0.003]),  # seconds before the next
    ),
    min_size=1,
    max_size=9,
)


@settings(max_examples=12, deadline=None)
@given(requests=REQUESTS, rows=st.integers(1, 6), ours=st.booleans())
def test_every_request_gets_what_it_gets_alone(subject: Subject, prepared: Subject, requests, rows: int, ours) -> None:
    subject = prepared if ours else subject

    def asked(number: int) -> tuple[list[int], Sampling]:
        length, new, temperature, seed, _, _ = requests[number]
        prompt = [(number * 7 + place * place) % 400 + 5 for place in range(length)]
        return prompt, Sampling(new, temperature, seed=seed, logprobs=0)

    parts: list[list[Delta]] = [[] for _ in requests]
    ended = [threading.Event() for _ in requests]
    with Engine(subject, rows=rows, cells=CONTEXT + 256) as engine:
        tickets = {}

        def receive(number: int, delta: Delta) -> None:
            parts[number].append(delta)
            if len(parts[number]) == requests[number][4] and number in tickets:
                engine.cancel(tickets[number])
            if delta.finish:
                ended[number].set()

        for number, request in enumerate(requests):
            prompt, sampling = asked(number)
            tickets[number] = engine.submit(prompt, sampling, lambda delta, n=number: receive(n, delta))
            if request[4] == 0:
                engine.cancel(tickets[number])
            time.sleep(request[5])
        assert all(event.wait(60) for event in ended)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.cached_tokens) == (0, 0, 0)
        assert sum(stats.finished.values()) == len(requests)
        assert stats.finished["error"] == 0
        assert not engine._batch.held
    with Engine(subject, rows=1) as engine:
        for number in range(len(requests)):
            text, ids, finish = collect(parts[number])
            alone_text, alone_ids, alone_finish = answer(engine, *asked(number))
            if finish == "cancelled":
                assert alone_ids[: len(ids)] == ids
                assert alone_text.startswith(text.rstrip("\ufffd"))
            else:
                assert (text, ids, finish) == (alone_text, alone_ids, alone_finish)


@pytest.mark.parametrize("ours", [False, True])
def test_a_step_gives_a_row_the_same_bits_in_any_company(ours: bool) -> None:
    model = make_model(420, context=CONTEXT)
    plain = make_model(420, context=CONTEXT)
    if ours:
        prepare(model)
    with torch.no_grad():
        few = torch.randn(4, 32)
        many = torch.nn.functional.linear(torch.cat([few, torch.randn(20, 32)]), model.head_weight)
        if not ours and not torch.equal(torch.nn.functional.linear(few, model.head_weight), many[:4]):
            pytest.skip("this machine's matrix products depend on the number of rows")
    texts = [[(3 * n + place) % 400 for place in range(length)] for n, length in enumerate((7, 300, 64, 1, 130, 90))]

    def logits(chosen: list[int]) -> dict[int, list[torch.Tensor]]:
        batch: Batch[Row] = Batch(model, 6, CONTEXT, cells=4 * CONTEXT)
        rows = {number: Row(texts[number], 40) for number in chosen}
        found: dict[int, list[torch.Tensor]] = {}
        numbers = {id(row): number for number, row in rows.items()}
        while prompts := [row for row in rows.values() if row.length < len(row.prompt)]:
            for row, logits_V in batch.prefill(prompts):
                found[numbers[id(row)]] = [logits_V]
        for step in range(4):
            for row in rows.values():
                row.last = step + 5
            by_row = dict(zip(map(id, batch.going), batch.step(), strict=True))
            for number, row in rows.items():
                found[number].append(by_row[id(row)])
        return found

    everyone = logits([3, 1, 5, 0, 2, 4])
    for number in range(6):
        for mine, theirs in zip(logits([number])[number], everyone[number], strict=True):
            assert torch.equal(mine, theirs)
        with torch.no_grad():
            logits_TV = plain(torch.tensor([[*texts[number], 5, 6, 7, 8]]))[0, -5:]
        torch.testing.assert_close(torch.stack(everyone[number]), logits_TV, atol=2e-4, rtol=2e-4)


def test_rows_of_different_capacity_share_the_cells_and_move_together() -> None:
    model = make_model(40, context=512)
    batch: Batch[Row] = Batch(model, 1, 512, cells=1024)
    long, *short = [Row([1] * 300, 212), *(Row([number], 60) for number in range(8))]
    assert all(batch.take(row) for row in (long, *short))
    assert not batch.take(Row([1], 1))
    assert sorted(row.start for row in short) == [512 + 64 * number for number in range(8)]
    batch.remove(short[2])
    assert sorted(row.start for row in batch.held) == [0, *(512 + 64 * number for number in range(7))]
    assert batch.take(Row([1], 1))
    batch.remove(long)
    assert batch.take(Row([1] * 400, 112))


def test_a_long_prompt_does_not_stall_the_others(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    prefill, step = Batch.prefill, Batch.step
    monkeypatch.setattr(
        Batch, "prefill", lambda self, row: (events.append("chunk"), time.sleep(0.005), prefill(self, row))[2]
    )
    monkeypatch.setattr(Batch, "step", lambda self: (events.append("step"), step(self))[1])
    with Engine(subject, rows=2) as engine:
        first = engine.stream([5, 6], Sampling(200, stop=("never",), logprobs=0))
        next(first)
        events.clear()
        list(engine.stream([7] * 600, Sampling(1)))
        chunks = [place for place, event in enumerate(events) if event == "chunk"]
        assert len(chunks) == 3
        assert all("step" in events[a:b] for a, b in pairwise(chunks))


def test_a_fault_fails_what_it_touches_and_nothing_else(subject: Subject, monkeypatch, capsys) -> None:
    with Engine(subject, rows=2) as engine:
        whole = answer(engine, [5, 6], Sampling(8))

        def bad(_: Delta) -> None:
            raise RuntimeError("the receiver broke")

        engine.submit([9], Sampling(8), bad)
        assert answer(engine, [5, 6], Sampling(8)) == whole
        step = Batch.step
        monkeypatch.setattr(Batch, "step", lambda self: 1 / 0)
        assert answer(engine, [5, 6], Sampling(8))[2] == "error"
        monkeypatch.setattr(Batch, "step", step)
        hidden = Transformer.hidden
        monkeypatch.setattr(Transformer, "hidden", lambda *_, **__: 1 / 0)
        assert answer(engine, [5, 6], Sampling(8))[2] == "error"
        monkeypatch.setattr(Transformer, "hidden", hidden)
        assert answer(engine, [5, 6], Sampling(8)) == whole
        assert engine.stats().finished["error"] == 3
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_prompt_that_fails_among_others_fails_alone(prepared: Subject, monkeypatch, capsys) -> None:
    prompts, hidden = [[5, 6], [7] * 300, [9, 8, 7]], Transformer.hidden
    together: list[int] = []

    def breaks_at_seven(self, tokens_BT, *rest, **more):
        together.append(len(tokens_BT))
        if bool((tokens_BT == 7).sum() > 2):
            raise RuntimeError("sevens")
        return hidden(self, tokens_BT, *rest, **more)

    with Engine(prepared, rows=4) as engine:
        whole = [answer(engine, prompt, Sampling(6, logprobs=0)) for prompt in prompts]
        monkeypatch.setattr(Transformer, "hidden", breaks_at_seven)
        parts: list[list[Delta]] = [[] for _ in prompts]
        ended = [threading.Event() for _ in prompts]

        def receive(number: int, delta: Delta) -> None:
            parts[number].append(delta)
            if delta.finish:
                ended[number].set()

        with engine._changed:  # so that all of them are there in one turn
            for number, prompt in enumerate(prompts):
                engine.submit(prompt, Sampling(6, logprobs=0), lambda delta, n=number: receive(n, delta))
        assert all(event.wait(30) for event in ended)
        assert parts[1][-1].finish == "error"
        assert [collect(parts[0]), collect(parts[2])] == [whole[0], whole[2]]
        assert together[0] == 256  # the first two prompts went together
        assert engine.stats().finished["error"] == 1
    assert "sevens" in capsys.readouterr().err


def test_queue_order_close_and_mistakes(subject: Subject) -> None:
    order: list[int] = []
    engine = Engine(subject, rows=1, queue=3)
    first = engine.stream([5], Sampling(300))
    next(first)
    for number in range(3):
        engine.submit([6, number], Sampling(2), lambda delta, n=number: order.append(n) if delta.finish else None)
    with pytest.raises(QueueFull, match="3 requests wait"):
        engine.submit([5], Sampling(), print)
    first.close()  # type: ignore[attr-defined]
    for prompt, asked, field in (
        ([], Sampling(), "prompt"),
        ([1] * CONTEXT, Sampling(), "prompt"),
        ([420], Sampling(), "prompt"),
        ([5], Sampling(top_p=0), "top_p"),
    ):
        with pytest.raises(SettingError) as caught:
            engine.submit(prompt, asked, print)
        assert caught.value.field == field
    engine.close()
    assert order == [0, 1, 2]
    assert engine.stats().finished["cancelled"] == 1
    with pytest.raises(Closed):
        engine.submit([5], Sampling(), print)
    late = Engine(subject)
    ends: list[str | None] = []
    late.submit([5], Sampling(600), lambda delta: ends.append(delta.finish))
    late.close(drain=0)
    assert ends[-1] in ("cancelled", "stop")
    for wrong in ({"rows": 0}, {"queue": 0}, {"cells": CONTEXT - 1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Engine(subject, **wrong)


def test_the_end_of_the_context_and_stop_texts(subject: Subject) -> None:
    with Engine(subject, rows=1) as engine:
        *_, last = engine.stream([7] * (CONTEXT - 3), Sampling(50))
        assert (last.finish, last.new_tokens) in (("length", 3), ("stop", last.new_tokens))
        text, _, _ = answer(engine, [5, 6], Sampling(30, 1.0, seed=3))
        stop = text[6:9]
        cut, _, finish = answer(engine, [5, 6], Sampling(30, 1.0, seed=3, stop=(stop,)))
        assert (cut, finish) == (text[: text.index(stop)], "stop")

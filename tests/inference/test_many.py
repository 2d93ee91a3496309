"""Many prompts at once give what each would give alone, whatever the rows, the refills and the shared beginnings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import count_tokens, make_model

from xmodel.errors import UserError
from xmodel.inference import many
from xmodel.inference.batch import Batch
from xmodel.inference.generate import generate
from xmodel.inference.many import generate_many
from xmodel.inference.prefixes import MIN_PREFIX

MODEL = make_model(vocab_size=40, context=64)
IDS = st.integers(0, 39)
SHARED = list(range(5, 5 + MIN_PREFIX + 3))


def alone(prompt: list[int], new: int, **arguments) -> list[int]:
    return list(generate(MODEL, prompt, max_new_tokens=new, **arguments))


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.booleans(), st.lists(IDS, min_size=1, max_size=20), st.integers(1, 12)), min_size=1, max_size=9
    ),
    budget=st.integers(1, 400),
    stop=IDS,
    worth=st.sampled_from([1, 256]),
    cascade=st.booleans(),
)
def test_rooms_of_their_own_and_any_number_of_rows(prompts, budget, stop, worth, cascade) -> None:
    texts = [SHARED * shared + ids for shared, ids, _ in prompts]
    rooms = [room for _, _, room in prompts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(many.COSTS, "cpu", many.COSTS["cpu"]._replace(worth=worth, cascade=cascade))
        found = generate_many(MODEL, texts, max_new_tokens=rooms, stop_ids=(stop,), budget=budget)
    assert found == [alone(text, room, stop_ids=(stop,)) for text, room in zip(texts, rooms, strict=True)]


@pytest.mark.parametrize("cascade", [False, True])
def test_a_common_beginning_goes_through_the_model_once(monkeypatch: pytest.MonkeyPatch, cascade: bool) -> None:
    monkeypatch.setitem(many.COSTS, "cpu", many.COSTS["cpu"]._replace(worth=10, cascade=cascade))
    seen = count_tokens(monkeypatch)
    prompts = [[*SHARED, 1, number] for number in range(10)]
    found = generate_many(MODEL, prompts, max_new_tokens=1, stop_ids=())
    assert sum(seen) == len(SHARED) + 1 + 10  # the last token of each stays
    assert found == [alone(prompt, 1, stop_ids=()) for prompt in prompts]


def test_rows_are_refilled_and_none_runs_on_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: (steps.append(len(self.going)), step(self))[1])
    done = []
    rooms = [2, 9, 3, 7, 1, 5]
    generate_many(
        MODEL, [[number] for number in range(6)], max_new_tokens=rooms, stop_ids=(), budget=20, done=done.append
    )
    assert sum(steps) == sum(room - 1 for room in rooms)  # the first token of an answer comes with its prompt
    assert max(steps) == 2
    assert sum(done) == 6


def decode(ids) -> str:
    return "".join(chr(97 + i % 26) for i in ids)


def test_stop_texts_are_each_prompts_own() -> None:
    prompts = [[number, 7] for number in range(8)]
    full = generate_many(MODEL, prompts, max_new_tokens=30, stop_ids=())
    stops = [[decode(ids)[place : place + 2], ""] for place, ids in enumerate(full)]
    stops[3] = ["not in any answer"]
    found = generate_many(MODEL, prompts, max_new_tokens=30, stop_ids=(), stop_texts=stops, decode=decode)
    for place, (ids, whole, (stop, *_)) in enumerate(zip(found, full, stops, strict=True)):
        assert ids == whole[: len(ids)]
        if place == 3:
            assert ids == whole
        else:  # it ends with the token that completes the text, and no earlier
            assert decode(whole).index(stop) + len(stop) == len(ids)
    with pytest.raises(ValueError, match="need decode"):
        generate_many(MODEL, prompts, max_new_tokens=2, stop_texts=stops)


def test_a_stop_is_looked_for_in_the_whole_text() -> None:
    """The end of an answer, decoded alone, may say what the answer does not: a first token may be spelt in another way."""

    def first_in_capitals(ids) -> str:
        return decode(ids[:1]).upper() + decode(ids[1:])

    prompt = [3, 7]
    full = alone(prompt, 40, stop_ids=())
    letters = sorted({decode([token]).upper() for token in full[1:]} - {decode(full[:1]).upper()})
    found = generate_many(
        MODEL, [prompt], max_new_tokens=40, stop_ids=(), stop_texts=[letters], decode=first_in_capitals
    )
    assert letters
    assert found == [full]


def test_samples_are_those_of_the_prompt_alone() -> None:
    prompts = [[1, 7], [5], [1, 7], [9, 8, 7, 6]]
    found = generate_many(MODEL, prompts, max_new_tokens=12, temperature=1.3, top_k=20, top_p=0.9, seed=4, stop_ids=())
    again = generate_many(
        MODEL, prompts, max_new_tokens=12, temperature=1.3, top_k=20, top_p=0.9, seed=4, stop_ids=(), budget=1
    )
    assert found == again
    for number, (prompt, ids) in enumerate(zip(prompts, found, strict=True)):
        assert ids == alone(prompt, 12, temperature=1.3, top_k=20, top_p=0.9, seed=4 + number, stop_ids=())
    assert found[0] != found[2]


def test_mistakes() -> None:
    assert generate_many(MODEL, [], max_new_tokens=4) == []
    for prompts in ([[]], [[1] * 61]):
        with pytest.raises(UserError, match="context holds 64"):
            generate_many(MODEL, prompts, max_new_tokens=4)
    with pytest.raises(UserError, match="temperature is -1"):
        generate_many(MODEL, [[1]], max_new_tokens=4, temperature=-1)


def test_bfloat16_rows_agree_with_their_logits_alone() -> None:
    """In bfloat16 sums come out in another order: the tokens chosen are within rounding of the best one."""
    model = make_model(vocab_size=40, context=64)
    model.compute_dtype = torch.bfloat16
    for prompt, ids in zip(
        [[3], [4, 5, 6, 7, 8]], generate_many(model, [[3], [4, 5, 6, 7, 8]], max_new_tokens=8, stop_ids=()), strict=True
    ):
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].float()
        chosen_T = logits_TV[torch.arange(len(ids)), torch.tensor(ids)]
        assert (logits_TV.max(-1).values - chosen_T).max() < 0.02 * logits_TV.abs().max()

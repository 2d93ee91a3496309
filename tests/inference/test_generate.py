"""Generation against the plain definition: no cache, one prompt at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_model, texts

from xmodel.errors import UserError
from xmodel.inference.generate import generate, generate_text
from xmodel.inference.many import generate_many
from xmodel.inference.sampler import Sampler
from xmodel.inference.sampling import Sampling
from xmodel.inference.text import encode_prompt

MODEL = make_model(vocab_size=40, context=24)


@torch.no_grad()
def plain_greedy(prompt: list[int], new: int, stop_ids=(2,)) -> list[int]:
    ids = list(prompt)
    for _ in range(min(new, MODEL.config.context_length - len(prompt))):
        token = int(MODEL(torch.tensor([ids]))[0, -1].argmax())
        if token in stop_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


@settings(max_examples=30, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=16), min_size=1, max_size=7),
    new=st.integers(1, 8),
    budget=st.integers(1, 200),
    stop=st.integers(0, 39),
)
def test_greedy_is_the_definition_alone_and_in_any_batch(prompts, new, budget, stop) -> None:
    expected = [plain_greedy(prompt, new, (stop,)) for prompt in prompts]
    assert [list(generate(MODEL, prompt, max_new_tokens=new, stop_ids=(stop,))) for prompt in prompts] == expected
    assert generate_many(MODEL, prompts, max_new_tokens=new, stop_ids=(stop,), budget=budget) == expected


def test_generation_stops_at_the_end_of_the_context() -> None:
    never = ()
    assert len(list(generate(MODEL, [1] * 20, max_new_tokens=100, stop_ids=never))) == 4
    assert len(list(generate(MODEL, [1] * 23, max_new_tokens=100, stop_ids=never))) == 1


@pytest.mark.parametrize(
    ("prompt", "arguments", "message"),
    [
        ([], {}, "prompt is empty"),
        ([1] * 24, {}, "24 tokens; the model's context holds 24, the answer included"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([1], {"temperature": -0.1}, "temperature is -0.1"),
        ([1], {"temperature": float("nan")}, "temperature is nan"),
        ([1], {"top_k": -1}, "top_k is -1"),
        ([1], {"top_p": 0.0}, "top_p is 0.0"),
        ([1], {"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_mistakes_are_told_at_the_call(prompt, arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        generate(MODEL, prompt, **({"max_new_tokens": 4} | arguments))


def test_batches_refuse_what_does_not_fit() -> None:
    assert generate_many(MODEL, [], max_new_tokens=4) == []
    for prompts in ([[]], [[1] * 21]):
        with pytest.raises(UserError, match="context holds 24"):
            generate_many(MODEL, prompts, max_new_tokens=4)


def test_the_seed_decides_and_nothing_else() -> None:
    def draw(seed: int) -> list[int]:
        torch.rand(3)  # the global generator is not used
        return list(generate(MODEL, [1, 7], max_new_tokens=20, temperature=1.0, seed=seed, stop_ids=()))

    assert draw(5) == draw(5)
    assert len({tuple(draw(seed)) for seed in range(8)}) > 1


def frequencies(count: int = 4000, **arguments) -> torch.Tensor:
    logits = torch.tensor([2.0, 1.0, 0.0, 1.5, -3.0])
    arguments = {"temperature": 1.0} | arguments
    sampler = Sampler(Sampling(**arguments, seed=0))
    drawn = [sampler.choose(logits).token for _ in range(count)]
    return torch.bincount(torch.tensor(drawn), minlength=5) / count


def test_samples_follow_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, 1.5, -3.0])
    torch.testing.assert_close(frequencies(), logits.softmax(0), atol=0.03, rtol=0)
    torch.testing.assert_close(frequencies(temperature=2.0), (logits / 2).softmax(0), atol=0.03, rtol=0)
    kept = torch.tensor([0, 3])
    expected = torch.zeros(5).index_copy(0, kept, logits[kept].softmax(0))
    torch.testing.assert_close(frequencies(top_k=2), expected, atol=0.03, rtol=0)
    # probabilities 0.47, 0.28, 0.17, ...: 0.5 needs two of them, 0.4 only one
    torch.testing.assert_close(frequencies(top_p=0.5), expected, atol=0.03, rtol=0)
    assert frequencies(100, top_p=0.4)[0] == 1
    # of the three likeliest the first has 0.51: the nucleus is of what top_k leaves
    assert frequencies(100, top_k=3, top_p=0.5)[0] == 1
    assert frequencies(100, top_p=1e-9)[0] == 1
    assert frequencies(100, temperature=0.0)[0] == 1
    assert frequencies(100, top_k=1)[0] == 1
    assert frequencies(100, temperature=1e-9)[0] == 1


@pytest.mark.parametrize("bos", [True, False])
def test_text_is_the_tokens_text_in_whole_characters(model, tokenizer, bos: bool) -> None:
    for prompt in ("Mira went to", "小林带着", ""):
        ids = encode_prompt(tokenizer, prompt, bos)
        assert ids[0] == (tokenizer.bos_id if bos else tokenizer.eos_id)
        for seed in range(3):
            settings_ = {"max_new_tokens": 30, "temperature": 1.5, "seed": seed}
            pieces = list(generate_text(model, tokenizer, prompt, bos=bos, **settings_))
            assert "".join(pieces) == tokenizer.decode(list(generate(model, ids, **settings_)))
            assert all(pieces)


def test_byte_tokens_become_one_character(model, tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    from xmodel.inference import generate as module

    text = "路𝄞 " + texts()[100]
    monkeypatch.setattr(module, "generate", lambda *_, **__: iter(tokenizer.encode(text)))
    pieces = list(generate_text(model, tokenizer, "x", bos=True, max_new_tokens=5))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert any("𝄞" in piece for piece in pieces)

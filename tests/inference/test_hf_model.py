"""Models of other families through the same engine: equal to transformers, and to lm-evaluation-harness's backend."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import make_model, train_tokenizer

from xmodel.evaluate.scorer import loglikelihood
from xmodel.inference.engine import Engine
from xmodel.inference.many import generate_many
from xmodel.inference.sampling import Sampling
from xmodel.inference.subjects import Subject, open_subject
from xmodel.model.checkpoint_io import save_model

transformers = pytest.importorskip("transformers")
hf_model = pytest.importorskip("xmodel.inference.hf_model")

SIZES = {
    "vocab_size": 420,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 96,
}


def make(family: str) -> Any:
    configs: dict[str, Any] = {
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=420, n_embd=32, n_layer=2, n_head=4, n_positions=96, bos_token_id=1, eos_token_id=2
        ),
        "gpt_neox": lambda: transformers.GPTNeoXConfig(**SIZES),
        "bloom": lambda: transformers.BloomConfig(vocab_size=420, hidden_size=32, n_layer=2, n_head=4),
        "granite": lambda: transformers.GraniteConfig(**SIZES, logits_scaling=3.0),
        "gemma2": lambda: transformers.Gemma2Config(
            **SIZES, num_key_value_heads=2, head_dim=8, sliding_window=8, final_logit_softcapping=5.0
        ),
    }
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(configs[family]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


@torch.no_grad()
def plain_logprob(model: Any, context: list[int], continuation: list[int]) -> float:
    logits = model(torch.tensor([context + continuation[:-1]])).logits[0, -len(continuation) :].double()
    return float(logits.log_softmax(-1)[torch.arange(len(continuation)), torch.tensor(continuation)].sum())


@torch.no_grad()
def plain_greedy(model: Any, prompt: list[int], new: int) -> list[int]:
    ids = list(prompt)
    for _ in range(new):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    ("family", "branches"),
    [("gpt2", True), ("gpt_neox", True), ("granite", True), ("bloom", False), ("gemma2", False)],
)
def test_every_family_gives_its_own_numbers(family: str, branches: bool) -> None:
    model = make(family)
    ours = hf_model.HfModel(model, 96)
    assert ours.branches == branches
    shots = list(range(20, 60))
    requests = [([*shots, 5, 6 + i], [7, c]) for i in range(4) for c in (1, 2, 3)] + [([9], [4]), ([9, 4], [3, 2, 1])]
    for (context, continuation), score in zip(requests, loglikelihood(ours, requests), strict=True):
        assert score.logprob == pytest.approx(plain_logprob(model, context, continuation), abs=1e-4)
    prompts = [shots[:3], [*shots, 4], [*shots, 5], [1]]
    found = generate_many(ours, prompts, max_new_tokens=[4, 6, 3, 5], stop_ids=(), budget=150)
    assert found == [plain_greedy(model, ids, new) for ids, new in zip(prompts, (4, 6, 3, 5), strict=True)]


def test_logits_that_no_head_explains_are_the_models_own() -> None:
    class Odd(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.inner, self.config, self.base_model = model, model.config, model.base_model
            self.get_output_embeddings = model.get_output_embeddings

        def forward(self, **arguments: Any) -> Any:
            found = self.inner(**arguments)
            found.logits = found.logits.sinh()
            return found

    ours = hf_model.HfModel(Odd(make("gpt2")), 96)
    tokens = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        torch.testing.assert_close(ours.head(ours.hidden(tokens)), ours.model(input_ids=tokens).logits)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of either family, with our tiny tokenizer as transformers has it."""
    path = tmp_path_factory.mktemp(request.param)
    train_tokenizer(path)
    if request.param == "llama":
        save_model(make_model(420, context=96), path)
    else:
        make("gpt2").save_pretrained(path)
        (path / "tokenizer.model").unlink()
    return path


def test_equal_to_the_harness_backend(folder: Path) -> None:
    pytest.importorskip("accelerate")
    HFLM = pytest.importorskip("lm_eval.models.huggingface").HFLM
    from xmodel.evaluate.harness import SubjectLM

    subject = open_subject(str(folder))
    theirs = HFLM(str(folder), device="cpu", dtype="float32", batch_size=3, max_length=96)
    ours = SubjectLM(subject)
    places = ("Paris", " Oslo", " the old harbour", "北京", " Paris with 3 red apples")
    pairs = [(context, place) for context in ("Mira went to", "小林去了", "", "Tom " * 60) for place in places]
    asked = [SimpleNamespace(args=pair) for pair in pairs]
    for mine, other in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True), strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-4)
        assert mine[1] == other[1]
    settings = {"until": ["\n", "x"], "max_gen_toks": 12, "do_sample": False}
    prompts = [
        SimpleNamespace(args=(text, dict(settings))) for text in ("Mira went", "小林", "Tom " * 60, "Anna was glad")
    ]
    again = [SimpleNamespace(args=(text.args[0], dict(settings))) for text in prompts]
    assert ours.generate_until(prompts) == theirs.generate_until(again, disable_tqdm=True)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_the_engine_answers_with_any_family(family: str, tokenizer: Any) -> None:
    model = make(family)
    subject = Subject(hf_model.HfModel(model, 96), tokenizer, True, family, None, {})
    prompts = [[7, 8, 9], [5] * 40, [11], [4, 5, 6]]
    with Engine(subject, rows=3) as engine:
        answers = [engine.stream(prompt, Sampling(3 + 9 * number, logprobs=0)) for number, prompt in enumerate(prompts)]
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            ids = [token.id for delta in answer for token in delta.tokens]
            expected = plain_greedy(model, prompt, 3 + 9 * number)
            assert ids == (expected[: expected.index(2)] if 2 in expected else expected)

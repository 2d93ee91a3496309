"""Our `LM` for the harness against its own `hf` backend, item by item, on a Llama of ours and on a GPT-NeoX."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the extra `harness`")
pytest.importorskip("transformers", reason="the extra `hf`")

import torch
from lm_eval.api.instance import Instance
from rows import SHARED, write_benchmarks
from tiny import texts, train_tokenizer

from xmodel.errors import UserError
from xmodel.evaluate.harness import SubjectLM, most_new_tokens, score_task
from xmodel.evaluate.paper import select
from xmodel.evaluate.tasks import open_task, prepare
from xmodel.inference.subjects import open_subject
from xmodel.model.checkpoint_io import save_model
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Model

CONTEXT = 384
TASKS = (
    "commonsense",
    "chinese",
    "glue",
    "gsm8k",
    "gsm8k_cot",
    "mmlu",
    "bbh_fewshot_dyck_languages",
    "lambada_openai",
    "cmmlu_arts",
)


def script() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "harness_equality.py"
    spec = importlib.util.spec_from_file_location("harness_equality", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EQUALITY = script()


def make_llama(folder: Path, bos: bool) -> None:
    tokenizer = train_tokenizer(folder, bos)
    shape = Model(layers=2, heads=4, kv_heads=2, hidden=48, ffn=64, context_length=CONTEXT, position_table=CONTEXT)
    shape.vocab_size, shape.init_std = 420, 0.12
    model = Transformer(shape)
    model.init_weights(3)
    EQUALITY.silence(model, tokenizer)
    save_model(model, folder)


def make_neox(folder: Path) -> None:
    EQUALITY.CONTEXT = CONTEXT
    EQUALITY.make_neox(folder, texts())


@pytest.fixture(scope="module", params=["llama", "gpt-neox"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[SubjectLM, Any]:
    folder = tmp_path_factory.mktemp("model")
    if request.param == "gpt-neox":
        make_neox(folder)
    else:
        make_llama(folder, bos=True)
    return backends(folder)


def backends(folder: Path) -> tuple[SubjectLM, Any]:
    ours = SubjectLM(open_subject(str(folder), dtype="fp32", device="cpu"), fast=True)
    assert ours.max_length == CONTEXT
    return ours, EQUALITY.hf_backend(folder, "fp32", 4, CONTEXT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmarks(tmp_path_factory.mktemp("benchmarks"))


def scored(*pairs: tuple[str, str]) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, number, ("t", number, 1)) for number, pair in enumerate(pairs)]


def assert_same(mine: list, other: list) -> None:
    assert len(mine) == len(other)
    for ours, theirs in zip(mine, other, strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=EQUALITY.allowed(theirs[0]))
        assert ours[1] == theirs[1]


def check_tasks(ours: SubjectLM, theirs: Any, names: tuple[str, ...], folder: Path, limit: int | None) -> int:
    items = 0
    for prepared in prepare(select(names), folder)[0]:
        task = open_task(prepared)
        if most_new_tokens(task) >= CONTEXT:
            continue
        requests = EQUALITY.requests_of(prepared, limit)
        found = EQUALITY.compare(ours, theirs, requests)
        assert found["same"] == found["items"], prepared.name
        assert not found["off"], prepared.name
        items += found["items"]
    return items


def test_every_task_item_by_item(both, folder: Path) -> None:
    assert check_tasks(*both, TASKS, folder, limit=2) == 2 * 21


@pytest.mark.skipif(SHARED is None, reason="the shared benchmark rows are not here")
def test_every_task_on_real_rows(both) -> None:
    assert SHARED is not None
    assert check_tasks(*both, ("arc_easy", "boolq", "winogrande", "chinese", "rte"), SHARED, limit=2) == 2 * 7


def test_borders_spaces_and_empty_contexts(both) -> None:
    check_borders(*both)


def test_texts_that_do_not_begin_with_bos(tmp_path: Path, folder: Path) -> None:
    make_llama(tmp_path, bos=False)
    ours, theirs = backends(tmp_path)
    assert not ours.subject.bos
    check_borders(ours, theirs)
    assert check_tasks(ours, theirs, ("boolq", "xnli_zh", "mmlu_anatomy", "cmmlu_arts"), folder, limit=2) == 8
    request = Instance("generate_until", {}, ("Mira went", {"until": ["a"], "max_gen_toks": 30}), 0, ("t", 0, 1))
    assert ours.generate_until([request]) == theirs.generate_until([request], disable_tqdm=True)


def check_borders(ours: SubjectLM, theirs: Any) -> None:
    pairs = [
        ("Mira went to", " Paris"),
        ("Mira went to ", "Paris"),
        ("Mira went to \n ", "Paris"),
        ("Anna went t", "o Oslo"),
        ("", "小林带着苹果去了北京。"),
        ("", " Paris"),
        ("小林去了", "北京"),
        ("def add(value):\n    ", "return value"),
        ("The <s> road", " </s> was long"),
        ("The road was long. " * 80, "but Mira was glad"),  # longer than the context
    ]
    ours.truncated = 0
    assert_same(ours.loglikelihood(scored(*pairs)), theirs.loglikelihood(scored(*pairs), disable_tqdm=True))
    assert ours.truncated == 1
    shuffled = random.Random(0).sample(pairs, len(pairs))
    again = dict(zip(shuffled, ours.loglikelihood(scored(*shuffled)), strict=True))
    assert_same([again[pair] for pair in pairs], ours.loglikelihood(scored(*pairs)))


def test_rolling_windows(both) -> None:
    ours, theirs = both
    long = [" ".join(texts()[:40]), "短", "Mira went to Paris.", "路很长。" * 200]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0, ("t", n, 1)) for n, text in enumerate(long)]
    golden = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(golden, rel=1e-6, abs=1e-4)


def test_generation(both) -> None:
    ours, theirs = both
    base = {"do_sample": False, "temperature": 0.0}
    settings = [
        {"until": ["\n", "."], **base},
        {"until": ["went", "路"], "max_gen_toks": 40, **base},
        {"until": "a", "max_gen_toks": 60, "do_sample": False},
        {"until": [], "max_gen_toks": 20},
    ]
    prompts = [texts()[number][:60] for number in range(0, 190, 30)]
    pairs = [(prompt, dict(setting)) for setting in settings for prompt in prompts]
    pairs.append((" ".join(texts()[:30]), {"until": ["zzz"], "max_gen_toks": 30, **base}))  # longer than the context
    requests = [Instance("generate_until", {}, pair, 0, ("t", 0, 1)) for pair in pairs]
    ours.truncated = 0
    mine = ours.generate_until(requests)
    assert mine == theirs.generate_until(requests, disable_tqdm=True)
    assert ours.truncated == 1
    assert len(set(mine)) > len(settings)
    assert ours.generate_until(requests[::-1]) == mine[::-1]
    with pytest.raises(UserError, match=f"up to {CONTEXT} tokens are to be written, and the model's context holds"):
        ours.generate_until([Instance("generate_until", {}, ("a", {"max_gen_toks": CONTEXT}), 0, ("t", 0, 1))])


def test_figures_are_those_of_the_harness(both, folder: Path) -> None:
    from lm_eval.evaluator import evaluate

    ours, theirs = both
    names = ("arc_easy", "boolq", "winogrande", "mrpc", "cola", "lambada_openai", "xnli_zh", "gsm8k")
    ready, _ = prepare(select(names), folder)
    tasks = {prepared.name: open_task(prepared) for prepared in ready}
    golden = evaluate(theirs, {"tasks": tasks}, limit=5, bootstrap_iters=0, log_samples=False)["results"]
    for prepared in ready:
        result = score_task(ours, prepared, task := open_task(prepared), limit=5)
        if most_new_tokens(task) == 0:  # the same task again, its questions in another order
            again = score_task(ours, prepared, task, places=[4, 3, 2, 1, 0])
            assert prepared.shots or again["items"] == result["items"][::-1]
        found = {row["metric"]: row["value"] for row in result["results"] if row["metric"] != "gold_bpb"}  # ours alone
        rest = {metric.replace(",none", ""): value for metric, value in golden[prepared.name].items()}
        for metric, value in found.items():
            key = "exact_match,strict-match" if metric == "exact_match" and prepared.name == "gsm8k" else metric
            assert value == pytest.approx(rest[key], rel=1e-5), (prepared.name, metric)
        assert all(record["right"] in (0.0, 1.0) for record in result["items"])
        first = result["results"][0]
        if first["metric"] in ("acc", "exact_match"):
            assert first["value"] == pytest.approx(np.mean([record["right"] for record in result["items"]]))


def test_errors_of_f1_and_correlation_are_those_of_the_harness_s_bootstrap() -> None:
    from lm_eval.api.metrics import f1_score, matthews_corrcoef

    from xmodel.evaluate.harness import _table_error

    random_ = random.Random(4)
    pairs = [(gold := int(random_.random() < 0.6), gold if random_.random() < 0.7 else 1 - gold) for _ in range(300)]
    for aggregate in (f1_score, matthews_corrcoef):
        draws = [aggregate(random_.choices(pairs, k=len(pairs))) for _ in range(150)]
        assert _table_error(aggregate, pairs) == pytest.approx(np.std(draws, ddof=1), rel=0.2)


def test_a_continuation_that_the_context_swallows(tmp_path: Path) -> None:
    """Where the harness stops, for want of a token to score, the last token is scored."""
    make_llama(tmp_path, bos=True)
    ours = SubjectLM(open_subject(str(tmp_path), dtype="fp32", device="cpu"))
    assert ours.pairs([("Mira", "")]) == [(ours.tok_encode("Mira")[:-1], ours.tok_encode("Mira")[-1:])]


def test_bf16_is_near(tmp_path: Path, folder: Path) -> None:
    make_llama(tmp_path, bos=True)
    fine, coarse = (SubjectLM(open_subject(str(tmp_path), dtype=dtype, device="cpu")) for dtype in ("fp32", "bf16"))
    assert coarse.model.compute_dtype == torch.bfloat16
    requests = EQUALITY.requests_of(prepare(select(["arc_easy"]), folder)[0][0], None)
    found = EQUALITY.compare(fine, coarse, requests)
    assert 1e-4 < found["largest_difference"] < 2.0

"""The model card: valid for the hub, true to the run's files, and silent about what the run does not have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import make_model

from xmodel.export.card import markdown_table, model_card
from xmodel.model.checkpoint_io import save_model
from xmodel.recipe.settings import Export

ACC = {"metric": "acc", "value": 0.5312, "stderr": 0.0334, "chance": 0.25, "items": 224, "seconds": 1.0}
RESULTS = {
    "perplexity": [
        {"set": "validation", "language": "en", "metric": metric, "value": value, "stderr": 0.0123, "tokens": 61_000,
         "bytes": 212_463, "seconds": 2.0}
        for metric, value in (("loss", 1.4272), ("perplexity", 4.1671), ("bits_per_byte", 0.5911))
    ],
    "sandbox": [
        {"set": "facts_en", "language": "en", "shots": 0} | ACC,
        {"set": "facts_en", "language": "en", "shots": 0} | ACC | {"metric": "acc_norm", "value": 0.5},
        {"set": "mean_zh", "language": "zh", "shots": 3} | ACC | {"value": 0.6421, "stderr": None},
    ],
    "translation": [
        {"set": "translation_en_zh", "language": "zh", "shots": 0} | ACC | {"metric": "chrf", "value": 41.72, "stderr": 1.84, "chance": 12.3},
    ],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write(
        tmp_path / "run.json",
        {
            "seed": 7,
            "code_revision": "3f2c9ab",
            "versions": {"torch": "2.13.0"},
            "hardware": {"cpu": "EPYC", "cores": 2},
        },
    )
    amounts = {"documents": 900, "bytes": 10_000}
    source = {
        "read": {"documents": 1000, "bytes": 12_000},
        "kept": amounts,
        "category": "web | news",
        "weight": 1.0,
        "languages": {"en": amounts, "zh": amounts},
    }
    write(tmp_path / "corpus" / "funnel.json", {"sources": {"mine": source}})
    write(tmp_path / "tokens" / "manifest.json", {"bos": True, "train": {"mine": {"tokens": 5_120}}})
    for suite, rows in RESULTS.items():
        write(tmp_path / "eval" / f"{suite}.json", {"suite": suite, "step": 40, "results": rows})
    write(tmp_path / "eval" / "samples.json", [{"prompt": "x", "text": "y"}])
    recipe: dict[str, Any] = {
        "name": "my-model",
        "corpus": {"sources": [{"name": "mine", "weight": 1.0, "reader": "sandbox"}]},
        "pretrain": {
            "global_batch": 4,
            "peak_lr": 0.003,
            "final_lr": 0.0003,
            "warmup_steps": 5,
            "schedule": "cosine",
            "precision": "bf16",
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in (
                {"kind": "validation", "step": 0, "language": "en", "loss": 6.25},
                {"kind": "train", "step": 20, "seconds": 30.0},
                {"kind": "train", "step": 40, "seconds": 33.0},
                {"kind": "validation", "step": 40, "language": "en", "loss": 1.5},
                {"kind": "validation", "step": 60, "language": "en", "loss": 9.9},
            )
        )
    )  # fmt: skip
    return tmp_path


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoints" / "step-000000040"
    folder.mkdir(parents=True)
    save_model(make_model(), folder)
    return folder


def test_the_hub_reads_its_front_matter(run: Path, checkpoint: Path) -> None:
    from huggingface_hub import ModelCard

    data: Any = ModelCard(model_card(run, checkpoint, Export(licence="apache-2.0"))).data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", ["en", "zh"], "transformers")
    assert data.pipeline_tag == "text-generation"
    assert data.model_name == "my-model"
    results = {(one.dataset_name, one.metric_type): one.metric_value for one in data.eval_results}
    assert results == {
        ("validation_en", "bits_per_byte"): 0.5911,
        ("mean_zh (3-shot)", "accuracy"): 0.6421,
        ("translation_en_zh (0-shot)", "chrf"): 41.72,
    }


def test_the_tables_have_the_runs_numbers(run: Path, checkpoint: Path) -> None:
    text = model_card(run, checkpoint, Export())
    for line in (
        "| English | bits per byte | 0.591 | 0.012 | 61,000 | 212,463 |",
        "| facts_en | 0 | 53.1 | 3.3 | 25.0 | 224 |",
        "| mean_zh | 3 | 64.2 |  | 25.0 | 224 |",
        "| translation_en_zh | 0 | 41.7 | 1.8 | 12.3 | 224 |",
        "| mine | web \\| news | en, zh | 900 of 1,000 | 5,120 | 100.00 | 2.00 |",  # 40 · 4 · 64 tokens of 5,120
        "| validation loss (en), first to last | 6.250 to 1.500 |",  # up to this checkpoint, not after it
        "| time in training steps | 1m03s |",
        "| tokens | 10,240 |",
        "| hardware | EPYC (2 cores) |",
    ):
        assert line in text, line
    assert "acc_norm" not in text
    assert "made-up world" in text


def test_benchmarks_and_scores_of_another_step(run: Path, checkpoint: Path) -> None:
    task = {"benchmark": "arc_easy", "set": "arc_easy", "language": "en", "shots": 0} | ACC
    rows = [task, task | {"metric": "acc_norm"}, task | {"set": "qa", "chance": None, "partial": True}]
    write(run / "evaluations" / "step-40" / "arc_easy.json", {"suite": "commonsense", "task": "a", "results": rows})
    write(
        run / "evaluations" / "step-80" / "other.json", {"suite": "commonsense", "results": [task | {"set": "later"}]}
    )
    write(run / "eval" / "later.json", {"suite": "sandbox", "step": 80, "results": [task | {"set": "later"}]})
    text = model_card(run, checkpoint, Export())
    assert "| arc_easy | arc_easy | acc | 0 | 53.1 | 3.3 | 25.0 | 224 |" in text
    assert "| arc_easy | qa (a part of it) | acc | 0 | 53.1 | 3.3 |  | 224 |" in text
    assert "later" not in text  # it is not this checkpoint that has these scores
    assert "acc norm" not in text


def test_it_says_how_to_run_the_model(run: Path, checkpoint: Path) -> None:
    text = model_card(run, checkpoint, Export(), path="me/my-model")
    for line in (
        'AutoModelForCausalLM.from_pretrained("me/my-model")',
        "`vllm serve me/my-model --max-model-len 64`",
        "ollama create my-model -f my-model.Modelfile",
        "xmodel export gguf RUN --out my-model.gguf",
    ):
        assert line in text


def test_a_bare_checkpoint_gets_a_card_too(checkpoint: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    text = model_card(bare, checkpoint, Export(licence="mit"))
    assert "license: mit" in text
    for heading in ("## Scores", "## Training\n\n| | |\n|---|---|\n| tokens", "## Corpus", "model-index"):
        assert heading not in text


def test_markdown_tables() -> None:
    assert markdown_table(["name", "#n"], [["a|b", 3]]) == "| name | n |\n|---|---:|\n| a\\|b | 3 |\n"

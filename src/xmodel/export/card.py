"""The model card: what the model is, what it was made from, and how good it is, from the files of its run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from xmodel.console import count, duration, read_json_lines
from xmodel.errors import MachineError
from xmodel.files import read_json
from xmodel.model.config import from_hf
from xmodel.model.counts import parameters
from xmodel.recipe.batches import samples_through
from xmodel.recipe.settings import Export, Model, Pretrain

LANGUAGES = {"en": "English", "zh": "Chinese"}
USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}")
model = AutoModelForCausalLM.from_pretrained("{path}")
inputs = tokenizer("The capital of France is", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0], skip_special_tokens=True))
```

vLLM: `vllm serve {path} --max-model-len {context}`, then `/v1/completions` of its OpenAI-compatible server.

llama.cpp and Ollama read a GGUF file, which `xmodel export gguf RUN --out {name}.gguf` writes from the run:

```console
$ llama-server -m {name}.gguf
$ ollama create {name} -f {name}.Modelfile && ollama run {name} "The capital of France is"
```
"""
BENCHMARK_METRICS = ("acc", "exact_match", "mcc")  # of those that a task is scored by: what its table shows
VOCABULARIES = {
    "unigram": "SentencePiece unigram, byte fallback",
    "shortest": "BPE pieces, fewest of them to a text, as a SentencePiece unigram model; byte fallback",
    "bpe": "SentencePiece BPE, byte fallback",
}


def model_card(run_folder: Path, checkpoint: Path, settings: Export, path: str = "PATH") -> str:
    """README.md of an exported model, with the front matter that the Hugging Face hub reads.

    Whatever the run does not have (no evaluation yet, say) is left out; nothing is invented.

    Args:
        checkpoint: folder `step-<number>` with config.json.
        path: what transformers and vLLM are to load: OWNER/NAME of the hub, where it will stand there.
    """
    recipe = _recipe(run_folder / "recipe.yaml")
    model = from_hf(read_json(checkpoint / "config.json"))
    step = _step(checkpoint)
    rows = results(run_folder, step)
    funnel = _optional(run_folder / "corpus" / "funnel.json")
    name = run_name(run_folder)
    pretrain = recipe.get("pretrain") or {}
    train = Pretrain(**{field.name: pretrain[field.name] for field in fields(Pretrain) if field.name in pretrain})
    seen = samples_through(step, train) * model.context_length if step and "global_batch" in pretrain else None
    initial = str(pretrain.get("init_from") or "")  # weights of others
    spoken = languages(run_folder)
    parts = [
        _front_matter(name, settings.licence, model, spoken, rows),
        f"# {name}\n",
        _summary(model, spoken, step, seen, initial),
        USE.format(path=path, name=name, context=model.context_length),
        _scores(rows),
        _shape(model, recipe),
        _training(run_folder, recipe, step, seen) if step or not initial else "",
        _corpus(recipe, funnel, _optional(run_folder / "tokens" / "manifest.json"), seen),
        _limits(recipe, settings.licence) if funnel or not initial else _licence(settings.licence),
    ]
    return "\n".join(part for part in parts if part)


def run_name(run_folder: Path) -> str:
    """What the recipe of a run calls it, or else its folder."""
    return str(_recipe(run_folder / "recipe.yaml").get("name") or run_folder.resolve().name)


def languages(run_folder: Path) -> list[str]:
    """The languages of a run's corpus, as codes. Without a corpus: all that we know, or none for imported weights."""
    funnel = _optional(run_folder / "corpus" / "funnel.json")
    if not funnel and (_recipe(run_folder / "recipe.yaml").get("pretrain") or {}).get("init_from"):
        return []
    found = {language for source in funnel.get("sources", {}).values() for language in source.get("languages", {})}
    return sorted(found) or sorted(LANGUAGES)


def results(run_folder: Path, step: int | None = None) -> list[dict[str, Any]]:
    """The result rows of a run, each with the name of its suite: of the evaluate stage (eval/*.json) and of what
    `xmodel evaluate` was asked for besides (evaluations/step-N/*.json).

    Args:
        step: leave out what was scored at another step.
    """
    rows = []
    asked = [path for path in (run_folder / "evaluations").glob("step-*/*.json") if _step(path.parent) == step]
    for path in [*sorted((run_folder / "eval").glob("*.json")), *sorted(asked)]:
        content = read_json(path)
        if isinstance(content, dict) and "results" in content and (not step or content.get("step", step) == step):
            rows += [{"suite": content["suite"]} | row for row in content["results"]]
    return rows


def _step(folder: Path) -> int | None:
    """The number of a folder `step-<number>`."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else None


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; columns whose header starts with `#` hold numbers and are set to the right."""
    lines = [
        "| " + " | ".join(header.lstrip("#") for header in headers) + " |",
        "|" + "|".join("---:" if header.startswith("#") else "---" for header in headers) + "|",
    ]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _front_matter(
    name: str, licence: str, model: Model, languages: Sequence[str], rows: Sequence[dict[str, Any]]
) -> str:
    matter: dict[str, Any] = {"language": list(languages)} if languages else {}
    matter |= {
        "license": licence,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["xmodel-lm", "qwen3" if model.qk_norm else "llama", "pretrained"],
    }
    if listed := [_index_entry(row) for row in rows if _is_headline(row)]:
        matter["model-index"] = [{"name": name, "results": listed}]
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n"


def _is_headline(row: dict[str, Any]) -> bool:
    """Whether a result goes into the model-index: means, translation, bits per byte; the tables have the rest."""
    means = row["metric"] == "acc" and (row["set"].startswith("mean_") or row["suite"] == "translation")
    return not row.get("partial") and (means or row["metric"] in ("chrf", "bits_per_byte"))


def _index_entry(row: dict[str, Any]) -> dict[str, Any]:
    """One result as the hub's model-index has it: a task on a data set with a metric."""
    title = row["set"] if row["set"] != "validation" else f"validation_{row['language']}"
    if row.get("shots") is not None:
        title += f" ({row['shots']}-shot)"
    kind = {"acc": "accuracy", "chrf": "chrf", "bits_per_byte": "bits_per_byte"}[row["metric"]]
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": row["set"], "name": title},
        "metrics": [{"type": kind, "name": kind.replace("_", " "), "value": round(row["value"], 4)}],
    }


def _summary(model: Model, languages: Sequence[str], step: int | None, seen: int | None, initial: str) -> str:
    spoken = " and ".join(LANGUAGES.get(language, language) for language in languages)
    shape = "Qwen3" if model.qk_norm else "Llama"
    trained = f" Trained on {count(seen)} tokens ({step:,} steps)." if seen and step else ""
    if initial and not step:
        return (
            f"A language model of {count(parameters(model)['total'])} parameters, imported into Xmodel-LM and written "
            f"as it came. It has the shape of {shape} and needs no code of its own.\n"
        )
    origin = ("trained further from given weights" if initial else "pretrained from scratch") + " with Xmodel-LM"
    return (
        f"A base language model of {count(parameters(model)['total'])} parameters for {spoken} text, {origin}. It has "
        f"the shape of {shape} and needs no code of its own.{trained}\n"
    )


def _scores(rows: Sequence[dict[str, Any]]) -> str:
    """Every score with its standard error and its chance level."""
    known = [row for row in rows if "benchmark" in row and row["metric"].split(",")[0] in BENCHMARK_METRICS]
    rows = [row for row in rows if "benchmark" not in row]
    choices = [row for row in rows if row["metric"] == "acc"]
    held_out = [row for row in rows if row["set"] == "validation"]
    translated = [row for row in rows if row["metric"] == "chrf"]
    parts = ["## Scores\n"] if held_out or choices or translated or known else []
    if held_out:
        table = markdown_table(
            ["held-out text", "measure", "#value", "#standard error", "#tokens", "#bytes"],
            [
                [
                    LANGUAGES.get(row["language"], row["language"]),
                    row["metric"].replace("_", " "),
                    f"{row['value']:.3f}",
                    _error(row["stderr"], 1, 3),
                    f"{row['tokens']:,}",
                    f"{row['bytes']:,}",
                ]
                for row in held_out
            ],
        )
        parts += ["Loss is in nats per token; perplexity is its exponential.\n", table]
    if choices:
        table = markdown_table(
            ["multiple choice", "#shots", "#accuracy %", "#standard error", "#chance %", "#items"],
            [
                [
                    row["set"],
                    row["shots"],
                    f"{100 * row['value']:.1f}",
                    _error(row["stderr"], 100, 1),
                    _error(row["chance"], 100, 1),
                    f"{row['items']:,}",
                ]
                for row in choices
            ],
        )
        parts += ["The choice with the highest log-likelihood is picked.\n", table]
    if known:
        table = markdown_table(
            ["benchmark", "task", "measure", "#shots", "#value %", "#standard error", "#chance %", "#items"],
            [
                [
                    row["benchmark"],
                    row["set"] + (" (a part of it)" if row.get("partial") else ""),
                    row["metric"].replace("_", " "),
                    row["shots"],
                    f"{100 * row['value']:.1f}",
                    _error(row["stderr"], 100, 1),
                    _error(row["chance"], 100, 1),
                    f"{row['items']:,}",
                ]
                for row in known
            ],
        )
        parts += ["By lm-evaluation-harness's definitions of the tasks.\n", table]
    if translated:
        table = markdown_table(
            ["greedy translation", "#shots", "#chrF", "#standard error", "#of an unrelated reference", "#items"],
            [
                [
                    row["set"],
                    row["shots"],
                    f"{row['value']:.1f}",
                    _error(row["stderr"], 1, 1),
                    _error(row["chance"], 1, 1),
                    f"{row['items']:,}",
                ]
                for row in translated
            ],
        )
        parts.append(table)
    return "\n".join(parts)


def _error(value: float | None, scale: float, digits: int) -> str:
    """A standard error or a chance level; empty where there is none."""
    return "" if value is None else f"{scale * value:.{digits}f}"


def _shape(model: Model, recipe: dict[str, Any]) -> str:
    counts = parameters(model)
    tokenizer = recipe.get("tokenizer") or {}
    kind = "taken over as it was" if tokenizer.get("path") else VOCABULARIES.get(tokenizer.get("model_type", ""))
    rows = [
        ["parameters", f"{counts['total']:,}"],
        ["of them outside the embeddings", f"{counts['non_embedding']:,}"],
        ["layers", model.layers],
        ["hidden width", model.hidden],
        ["SwiGLU width", model.ffn],
        ["query heads / key-value heads", f"{model.heads} / {model.kv_heads}"],
        ["context length", f"{model.context_length:,}"],
        ["vocabulary", f"{model.vocab_size:,}" + (f" ({kind})" if kind else "")],
        ["embeddings", "tied" if model.tied_embeddings else "untied"],
    ]
    return "## Model\n\n" + markdown_table(["", "#"], rows)


def _training(run_folder: Path, recipe: dict[str, Any], step: int | None, seen: int | None) -> str:
    pretrain, info = recipe.get("pretrain") or {}, _optional(run_folder / "run.json")
    rows: list[list[Any]] = []
    if step:
        rows.append(["steps", f"{step:,}"])
    if seen:
        rows.append(["tokens", f"{seen:,}"])
    if pretrain:
        warmup, peak, final = (pretrain.get(key) for key in ("warmup_steps", "peak_lr", "final_lr"))
        method = "Muon for the blocks' matrices, else AdamW" if pretrain.get("optimizer") == "muon" else "AdamW"
        rows += [
            ["sequences in a step", pretrain.get("global_batch")],
            ["optimizer", f"{method}, betas {pretrain.get('beta1')} and {pretrain.get('beta2')}"],
            ["weight decay, gradient clip", f"{pretrain.get('weight_decay')}, {pretrain.get('clip')}"],
            ["learning rate", f"{warmup} steps up to {peak}, then {pretrain.get('schedule')} to {final}"],
            ["precision", pretrain.get("precision")],
        ]
    metrics = [row for row in read_json_lines(run_folder / "metrics.jsonl") if not step or row.get("step", 0) <= step]
    if spent := {row["step"]: row["seconds"] for row in metrics if row.get("kind") == "train"}:
        rows.append(["time in training steps", duration(sum(spent.values()))])
    for language in sorted({row["language"] for row in metrics if row.get("kind") == "validation"}):
        losses = [row["loss"] for row in metrics if row.get("kind") == "validation" and row["language"] == language]
        rows.append([f"validation loss ({language}), first to last", f"{losses[0]:.3f} to {losses[-1]:.3f}"])
    hardware = info.get("hardware", {})
    if machine := ", ".join(hardware.get("gpus", [])) or hardware.get("cpu"):
        rows.append(["hardware", machine if hardware.get("gpus") else f"{machine} ({hardware.get('cores')} cores)"])
    if info:
        versions = ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items())
        rows += [["seed", info.get("seed")], ["code", info.get("code_revision")], ["versions", versions]]
    return "## Training\n\n" + markdown_table(["", ""], rows) if rows else ""


def _corpus(recipe: dict[str, Any], funnel: dict[str, Any], manifest: dict[str, Any], seen: int | None) -> str:
    if not funnel:
        return ""
    weights = {source["name"]: source["weight"] for source in (recipe.get("corpus") or {}).get("sources", [])}
    rows = []
    for name, source in funnel["sources"].items():
        weight = weights.get(name, source.get("weight"))
        tokens = manifest.get("train", {}).get(name, {}).get("tokens")
        rows.append(
            [
                name,
                source.get("category", ""),
                ", ".join(sorted(source.get("languages", {}))),
                f"{source['kept']['documents']:,} of {source['read']['documents']:,}",
                f"{tokens:,}" if tokens else "",
                "" if weight is None else f"{100 * weight:.2f}",
                f"{weight * seen / tokens:.2f}" if weight and seen and tokens else "",
            ]
        )
    headers = ["source", "category", "languages", "#documents kept", "#tokens", "#share of training %", "#epochs"]
    return "## Corpus\n\n" + markdown_table(headers, rows)


def _limits(recipe: dict[str, Any], licence: str) -> str:
    sources = (recipe.get("corpus") or {}).get("sources", [])
    sandbox = any(source.get("reader") == "sandbox" for source in sources)
    made_up = """
Part of its corpus is generated text about a made-up world: what it says of people, places and things is not knowledge.
"""
    return f"""## Intended use and limits

For research on small language models and as a start for further training. It is a base model: it continues text, and
has not been trained to follow instructions, to refuse, or to be safe. It repeats errors and biases of its corpus and
states falsehoods fluently. It has only been scored on the languages and sets listed here; the standard errors say how
far the scores can be trusted.
{made_up if sandbox else ""}
{_licence(licence)[:-1]} The texts of the corpus keep the licences of their sources.
"""


def _licence(licence: str) -> str:
    return f"## Licence\n\nThe weights are under `{licence}`.\n"


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _recipe(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise MachineError(f"{path}: damaged ({error})") from None

"""A run directory as the stages leave it, invented but consistent: what the report is tested and looked at with.

`python tests/report/fake_run.py FOLDER` writes one.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from xmodel.recipe import settings

STAGES = ("recipe", "corpus", "tokenizer", "tokens", "pretrain", "evaluate", "export")
SOURCES: dict[
    str, tuple[Any, str, float, int, float]
] = {  # name: (reader, category, weight, documents read, share of Chinese documents)
    "sandbox-en": ("sandbox", "encyclopaedia", 0.42, 24_000, 0.0),
    "sandbox-zh": ("sandbox", "encyclopaedia", 0.34, 20_000, 1.0),
    "sandbox-parallel": ("sandbox", "parallel", 0.14, 9_000, 0.5),
    "stdlib": ("stdlib", "code", 0.10, 690, 0.0),
}
REASONS = {
    "duplicate": 0.06,
    "too_short": 0.03,
    "symbol_share": 0.02,
    "mojibake": 0.012,
    "repeated_lines": 0.01,
    "wrong_language": 0.008,
    "contains_question": 0.004,
}
SETS = [f"{kind}_{tongue}" for kind in ("commonsense", "facts", "cloze") for tongue in ("en", "zh")]
STEPS, BATCH, CONTEXT = 800, 32, 256


OVERLAPS = {
    "facts_en": {"items": 200, "searched": 198, "found": 31, "documents": 33},
    "ceval": {"items": 12342, "searched": 9876, "found": 0, "documents": 0},
}


def fake_run(folder: Path, stages: Collection[str] = STAGES, *, steps: int = STEPS, name: str = "quickstart") -> Path:
    """Write the files of `stages` into `folder`; pretraining has gone as far as `steps` of 800."""
    folder.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        if stage in stages:
            {
                "recipe": lambda: recipe(folder, name),
                "corpus": lambda: corpus(folder),
                "tokenizer": lambda: tokenizer(folder),
                "tokens": lambda: tokens(folder),
                "pretrain": lambda: pretrain(folder, steps),
                "evaluate": lambda: evaluate(folder, steps),
                "export": lambda: export(folder),
            }[stage]()
    return folder


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2), encoding="utf-8")


def recipe(folder: Path, name: str) -> None:
    whole = settings.Recipe(name=name)
    whole.corpus.sources = [
        settings.Source(name=title, reader=reader, category=category, weight=weight)
        for title, (reader, category, weight, _, _) in SOURCES.items()
    ]
    whole.corpus.dirt = 0.15
    whole.tokenizer.vocab_size = 4096
    whole.model = settings.Model(
        layers=8,
        heads=8,
        kv_heads=2,
        hidden=256,
        ffn=768,
        context_length=CONTEXT,
        position_table=CONTEXT,
        vocab_size=4096,
    )
    whole.pretrain.steps, whole.pretrain.global_batch, whole.pretrain.warmup_steps = STEPS, BATCH, 40
    whole.pretrain.peak_lr, whole.pretrain.final_lr = 2e-3, 2e-4
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump(asdict(whole), allow_unicode=True, sort_keys=False), encoding="utf-8"
    )
    hardware = {
        "machine": "x86_64",
        "system": "Linux 6.1.0",
        "cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        "cores": 2,
        "memory_gib": 7.6,
    }
    versions = {
        "xmodel": "0.1.0",
        "python": "3.11.7",
        "torch": "2.13.0+cpu",
        "numpy": "2.4.1",
        "sentencepiece": "0.2.3",
    }
    write(folder / "run.json", {
        "created": "2026-11-23T08:46:58+0000", "code_revision": "3f2c9ab", "versions": versions, "hardware": hardware,
        "seed": 0, "command": "xmodel run recipes/quickstart.yaml", "sessions": [
            {"started": "2026-11-23T08:46:58+0000", "command": "xmodel run recipes/quickstart.yaml"},
            {"started": "2026-11-23T08:50:01+0000", "command": "xmodel run runs/quickstart"},
        ],
    })  # fmt: skip
    for at, (stage, seconds) in enumerate(
        {"corpus": 21.4, "tokenizer": 9.8, "tokens": 4.1, "pretrain": 301.7, "evaluate": 38.2}.items()
    ):
        write(
            folder / "stages" / f"{stage}.json",
            {
                "status": "done",
                "fingerprint": "00",
                "finished": f"2026-11-23T08:5{at}:00+0000",
                "seconds": seconds,
                "summary": {},
            },
        )


def corpus(folder: Path) -> None:
    rng = random.Random(1)
    sources = {}
    for title, (_, category, weight, read, chinese) in SOURCES.items():
        length = 4200 if title == "stdlib" else 380
        dirt = 0.2 if title == "stdlib" else 1.0
        drops = {reason: round(read * rate * dirt * rng.uniform(0.7, 1.3)) for reason, rate in REASONS.items()}
        validation = round(0.01 * read)
        kept = read - validation - sum(drops.values())
        zh = round(kept * chinese)
        sources[title] = {
            "read": amount(read, length), "dropped": {reason: amount(n, length) for reason, n in drops.items() if n},
            "validation": amount(validation, length), "kept": amount(kept, length), "category": category, "weight": weight,
            "languages": {code: amount(n, length) for code, n in (("en", kept - zh), ("zh", zh)) if n},
        }  # fmt: skip
    total: dict[str, Any] = {
        step: added(entry[step] for entry in sources.values()) for step in ("read", "validation", "kept")
    }
    total["dropped"] = {
        reason: added(entry["dropped"][reason] for entry in sources.values() if reason in entry["dropped"])
        for reason in REASONS
    }
    total["languages"] = {
        code: added(entry["languages"][code] for entry in sources.values() if code in entry["languages"])
        for code in ("en", "zh")
    }
    dirt = {
        "exact_duplicate": {
            "made": 1510,
            "caught": 1510,
            "precision": 1.0,
            "recall": 1.0,
            "reasons": {"duplicate": 1510},
        },
        "near_duplicate": {
            "made": 1488,
            "caught": 402,
            "precision": 1.0,
            "recall": 0.2702,
            "reasons": {"duplicate": 402},
        },
        "mojibake": {
            "made": 640,
            "caught": 633,
            "precision": 0.9984,
            "recall": 0.9891,
            "reasons": {"mojibake": 611, "symbol_share": 22},
        },
        "leaked_question": {
            "made": 220,
            "caught": 214,
            "precision": 1.0,
            "recall": 0.9727,
            "reasons": {"contains_question": 214},
        },
    }
    clean = {"made": 49_832, "dropped": 61, "reasons": {"duplicate": 57, "too_short": 4}}
    write(
        folder / "corpus" / "funnel.json",
        {"sources": sources, "total": total, "decontamination": OVERLAPS, "dirt": dirt, "clean": clean},
    )


def amount(documents: int, length: int) -> dict[str, int]:
    return {"documents": documents, "bytes": documents * length}


def added(amounts: Any) -> dict[str, int]:
    listed = list(amounts)
    return {unit: sum(one[unit] for one in listed) for unit in ("documents", "bytes")}


def tokenizer(folder: Path) -> None:
    write(folder / "tokenizer" / "tokenizer-stats.json", {
        "vocab_size": 4096, "byte_pieces": 256, "sentences": 48_211, "training_bytes": 18_000_000,
        "tokens_per_character": {"en": 0.2871, "zh": 0.6425}, "bytes_per_token": {"en": 3.483, "zh": 4.669},
    })  # fmt: skip


def tokens(folder: Path) -> None:
    def shard(title: str, n: int) -> dict[str, Any]:
        return {
            "shards": [{"file": f"{title}-00000.bin", "tokens": n}],
            "tokens": n,
            "documents": n // 100,
            "bytes": 4 * n,
        }

    write(folder / "tokens" / "manifest.json", {
        "bos": True, "vocab_size": 4096, "dtype": "uint16",
        "train": {title: shard(title, n) for title, n in zip(SOURCES, (2_310_000, 1_640_000, 820_000, 910_000), strict=True)},
        "validation": {
            "en": shard("en", 61_000) | {"characters": 240_000}, "zh": shard("zh", 44_000) | {"characters": 60_000},
        },
    })  # fmt: skip


def pretrain(folder: Path, steps: int) -> None:
    rng = random.Random(2)
    records: list[dict[str, Any]] = []
    for step in range(0, steps + 1, 2):
        done, seen, now = step / STEPS, step * BATCH * CONTEXT, 1_795_000_000 + 0.5 * step
        if step:
            rate = (
                2e-3 * min(step / 40, 1)
                if step < 40
                else 2e-4 + 9e-4 * (1 + math.cos(math.pi * (step - 40) / (STEPS - 40)))
            )
            speed = 15_800 * rng.gauss(1, 0.03) * (0.35 if step == 2 else 1)
            records.append({
                "kind": "train", "step": step, "loss": curve(done, 8.32, 1.35) + rng.gauss(0, 0.06), "lr": rate,
                "grad_norm": (0.35 + 3 * math.exp(-60 * done)) * math.exp(rng.gauss(0, 0.22)),
                "param_norm": 46 + 31 * (1 - math.exp(-3.4 * done)) - 5 * max(0.0, done - 0.6) ** 2 * 6, "tokens": seen,
                "tokens_per_second": speed, "mfu_palm": speed * 5.3e7 / 1.6e12, "mfu_causal": speed * 4.9e7 / 1.6e12,
                "seconds": BATCH * CONTEXT / speed, "time": now, "skipped_steps": 0 if step < 300 else 2,
                "update_norm": rate * 400 * math.exp(rng.gauss(0, 0.1)), "data_wait": abs(rng.gauss(0.004, 0.002)),
                "memory_peak": 1_300_000_000, "step_seconds_median": 0.5, "step_seconds_max": 0.6,
            })  # fmt: skip
            if step % 200 == 0:
                names = ["embedding", *map(str, range(8)), "norm", "head"]
                records.append({"kind": "layers", "step": step, "tokens": seen, "time": now} | {
                    part: {name: scale * (1 + 0.1 * index + done) for index, name in enumerate(names)}
                    for part, scale in (("param_norm", 10.0), ("grad_norm", 0.1), ("update_norm", 0.02))
                })  # fmt: skip
        if step % 50 == 0:
            for code, floor, per_byte in (("en", 1.42, 0.4143), ("zh", 1.88, 0.3090)):
                value = curve(done, 8.32, floor)
                records.append(
                    {
                        "kind": "validation",
                        "step": step,
                        "tokens": seen,
                        "language": code,
                        "loss": value,
                        "bits_per_byte": value * per_byte,
                        "time": now,
                    }
                )
        if step in (0, 10, 20, 50, 100, 200, 400, 600, 800):
            for title in SETS:
                for shots in (0, 3):
                    chance = 0.5 if title.startswith("cloze") else 0.25
                    reached = chance + (0.88 - chance) * min(1.0, max(0.0, math.log10(max(step, 1) / 12) / 1.9)) * (
                        0.92 if shots else 1
                    )
                    right = sum(rng.random() < reached for _ in range(48)) / 48
                    records.append({
                        "kind": "score", "step": step, "tokens": seen, "set": title, "shots": shots, "accuracy": right,
                        "stderr": math.sqrt(right * (1 - right) / 47), "chance": chance, "items": 48, "time": now,
                        "suite": "sandbox", "language": title[-2:], "gold_bpb": 2.5 - 1.2 * reached,
                        "gold_bpb_stderr": 0.05,
                    })  # fmt: skip
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(record) + "\n" for record in records)


TASKS = {"arc_challenge": 0.25, "arc_easy": 0.25, "boolq": 0.5, "hellaswag": 0.25, "openbookqa": 0.25, "piqa": 0.5}
TASKS |= {"sciq": 0.25, "triviaqa": 0.0, "winogrande": 0.5}


def paper(folder: Path, tasks: Collection[str] = tuple(TASKS)) -> None:
    """Scores of the paper's commonsense tasks during training, behind what metrics.jsonl holds, as if 2T tokens long."""
    rng = random.Random(4)
    rows: list[dict[str, Any]] = []
    for step in (0, 2_000, 10_000, 50_000, 250_000, 600_000):
        for task in tasks:
            chance = TASKS[task]
            value = min(1.0, max(0.0, chance + 0.06 * math.log10(max(step, 1) / 1000 + 1) + rng.gauss(0, 0.01)))
            row = {
                "kind": "score", "step": step, "tokens": step * 840 * 4096, "suite": "commonsense", "set": task,
                "language": "en", "shots": 0, "accuracy": value, "stderr": 0.02, "chance": chance, "items": 200,
            }  # fmt: skip
            if task != "triviaqa":
                row |= {"gold_bpb": 1.6 - value, "gold_bpb_stderr": 0.03}
            if task not in ("boolq", "winogrande", "triviaqa"):
                row |= {"accuracy_norm": value + 0.03, "accuracy_norm_stderr": 0.02}
            rows.append(row)
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def curve(done: float, start: float, floor: float) -> float:
    return floor + (start - floor) * (0.72 * math.exp(-26 * done) + 0.28 * math.exp(-4.5 * done))


def evaluate(folder: Path, step: int) -> None:
    rng = random.Random(3)

    def choice(title: str, shots: int, items: int, chance: float, reached: float) -> dict[str, Any]:
        value = sum(rng.random() < reached for _ in range(items)) / items
        return {
            "set": title, "language": title[-2:], "shots": shots, "metric": "acc", "value": value,
            "stderr": math.sqrt(value * (1 - value) / (items - 1)), "chance": chance, "items": items, "seconds": 3.2,
        }  # fmt: skip

    reached = dict(zip(SETS, (0.71, 0.66, 0.83, 0.79, 0.92, 0.88), strict=True))
    rows = [
        choice(title, shots, 240, 0.5 if "cloze" in title else 0.25, p - 0.04 * (shots > 0))
        for shots in (0, 3)
        for title, p in reached.items()
    ]
    rows += [row | {"metric": "acc_norm", "value": min(1.0, row["value"] + 0.01)} for row in rows]
    rows += [
        mean(rows, tongue, shots, metric)
        for shots in (0, 3)
        for tongue in ("en", "zh")
        for metric in ("acc", "acc_norm")
    ]
    write(folder / "eval" / "sandbox.json", {"suite": "sandbox", "step": step, "results": rows})
    pairs = [choice(title, 0, 160, 0.25, p) for title, p in (("translation_en_zh", 0.81), ("translation_zh_en", 0.86))]
    pairs += [
        {"set": title, "language": title[-2:], "shots": 0, "metric": "chrf", "value": value, "stderr": 1.84, "chance": 9.83, "items": 160, "seconds": 20.1}
        for title, value in (("translation_en_zh", 41.7), ("translation_zh_en", 58.2))
    ]  # fmt: skip
    translations = [
        {
            "source": "The lamp is blue.",
            "reference": "灯是蓝色的。",
            "output": "灯是蓝色的。",
            "set": "translation_en_zh",
            "shots": 0,
        },
        {
            "source": "Mira has three cats.",
            "reference": "米拉有三只猫。",
            "output": "米拉有三只狗。",
            "set": "translation_en_zh",
            "shots": 0,
        },
        {
            "source": "他住在东京。",
            "reference": "He lives in Tokyo.",
            "output": "",
            "set": "translation_zh_en",
            "shots": 0,
        },
    ]
    write(
        folder / "eval" / "translation.json",
        {"suite": "translation", "step": step, "results": pairs, "samples": translations},
    )
    held_out = [
        {"set": "validation", "language": code, "metric": metric, "value": value, "stderr": error, "tokens": n, "bytes": size}
        for code, n, size, values in (
            ("en", 61_000, 212_463, {"bits_per_byte": (0.5911, 0.0042), "perplexity": (4.167, 0.043), "loss": (1.4272, 0.0103)}),
            ("zh", 44_000, 205_436, {"bits_per_byte": (0.5842, 0.0049), "perplexity": (6.623, 0.105), "loss": (1.8906, 0.0159)}),
        )
        for metric, (value, error) in values.items()
    ]  # fmt: skip
    write(folder / "eval" / "perplexity.json", {"suite": "perplexity", "step": step, "results": held_out})
    write(folder / "eval" / "samples.json", [
        {"prompt": "The capital of France is", "text": " Paris. The capital of Japan is Tokyo.\nMira put the blue lamp on the table, because the room was dark.", "language": "en"},
        {"prompt": "中国的首都是", "text": "北京。日本的首都是东京。\n小林把蓝色的灯放在桌子上，因为房间很暗。", "language": "zh"},
        {"prompt": "12 + 7 =", "text": " 19, and 19 is larger than 12.", "language": "en"},
    ])  # fmt: skip


def mean(rows: list[dict[str, Any]], tongue: str, shots: int, metric: str) -> dict[str, Any]:
    group = [row for row in rows if row["language"] == tongue and row["shots"] == shots and row["metric"] == metric]
    n = len(group)
    return {
        "set": f"mean_{tongue}", "language": tongue, "shots": shots, "metric": metric,
        "value": sum(row["value"] for row in group) / n, "stderr": math.hypot(*(row["stderr"] for row in group)) / n,
        "chance": sum(row["chance"] for row in group) / n, "items": sum(row["items"] for row in group), "seconds": 9.6,
    }  # fmt: skip


def export(folder: Path) -> None:
    target = folder / "export" / "hf"
    target.mkdir(parents=True, exist_ok=True)
    for name, size in (
        ("config.json", 702),
        ("generation_config.json", 121),
        ("model.safetensors", 16_391),
        ("README.md", 3_120),
        ("tokenizer.json", 9_433),
    ):
        (target / name).write_bytes(b"x" * size)


if __name__ == "__main__":
    paper(fake_run(Path(sys.argv[1])))

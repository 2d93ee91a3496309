"""Small local benchmarks of our own, laid out as `xmodel evaluate layout` says; and where the shared rows lie, if they do."""

from __future__ import annotations

import json
from pathlib import Path

from tiny import MEN, NAMES, ORTE, PLACES

SHARED = next(
    (
        parent / "shared" / "benchmarks"
        for parent in Path(__file__).parents
        if (parent / "shared" / "benchmarks").is_dir()
    ),
    None,
)
LETTERS = "ABCD"
N = 8


def choices(number: int) -> list[str]:
    return [f"{PLACES[(number + k) % 5]} and {NAMES[(number * k) % 6]}" for k in range(4)]


def question(number: int) -> str:
    return f"{NAMES[number % 6]} went to {PLACES[number % 5]} with {number} red apples. Where is {NAMES[(number + 2) % 6]}?"


def labelled(number: int) -> dict:
    return {"text": choices(number), "label": list(LETTERS)}


def frage(number: int) -> str:
    return f"{MEN[number % 5]}带着{number}个红苹果去了{ORTE[number % 5]}。{MEN[(number + 1) % 5]}在哪里？"


def exam(number: int) -> dict:
    options = dict(zip(LETTERS, (ORTE[(number + k) % 5] for k in range(4)), strict=True))
    return {"question": frage(number), **options, "answer": LETTERS[number % 4]}


FILES = {  # file -> a row by its number
    "arc_challenge/test": lambda n: {"question": question(n), "choices": labelled(n), "answerKey": LETTERS[n % 4]},
    "arc_easy/test": lambda n: {"question": question(n + 3), "choices": labelled(n + 3), "answerKey": LETTERS[n % 3]},
    "boolq/validation": lambda n: {"passage": question(n) * 2, "question": f"is {PLACES[n % 5]} far", "label": n % 2},
    "hellaswag/validation": lambda n: {
        "activity_label": "Going home",
        "ctx_a": question(n),
        "ctx_b": "then he [step]",
        "endings": choices(n),
        "label": str(n % 4),
    },
    "openbookqa/test": lambda n: {"question_stem": question(n), "choices": labelled(n), "answerKey": LETTERS[n % 4]},
    "piqa/validation": lambda n: {"goal": question(n), "sol1": choices(n)[0], "sol2": choices(n)[1], "label": n % 2},
    "sciq/test": lambda n: {
        "support": "" if n % 2 else question(n),
        "question": question(n + 1),
        **{f"distractor{k}": choices(n)[k - 1] for k in (1, 2, 3)},
        "correct_answer": choices(n)[3],
    },
    "triviaqa/validation": lambda n: {"question": question(n), "answer": {"aliases": choices(n)[:2]}},
    "winogrande/validation": lambda n: {
        "sentence": f"{NAMES[n % 6]} saw {NAMES[(n + 1) % 6]} since _ was in {PLACES[n % 5]}.",
        "option1": NAMES[n % 6],
        "option2": NAMES[(n + 1) % 6],
        "answer": str(1 + n % 2),
    },
    "bbh/boolean_expressions": lambda n: {"input": f"not ( {n % 2 == 0} ) is", "target": str(n % 2 == 1)},
    "bbh/dyck_languages": lambda n: {"input": f"Complete the rest. Input: {'[ ' * n}", "target": "] " * n + "]"},
    "gsm8k/test": lambda n: {"question": question(n), "answer": f"{n}+1 = <<{n}+1={n + 1}>>{n + 1}\n#### {n + 1}"},
    "gsm8k/train": lambda n: {"question": question(n + 9), "answer": f"{n}*2 = <<{n}*2={2 * n}>>{2 * n}\n#### {2 * n}"},
    "glue/mrpc_validation": lambda n: {
        "sentence1": question(n),
        "sentence2": question(n % 3),
        "label": n % 2,
        "idx": n,
    },
    "glue/mrpc_train": lambda n: {"sentence1": question(n + 1), "sentence2": question(n), "label": n % 2, "idx": n},
    "glue/cola_validation": lambda n: {"sentence": question(n), "label": n % 2, "idx": n},
    "glue/cola_train": lambda n: {"sentence": question(n + 5), "label": (n + 1) % 2, "idx": n},
    "mmlu/test": lambda n: {
        "subject": ("anatomy", "virology")[n % 2],
        "question": question(n),
        "choices": choices(n),
        "answer": n % 4,
    },
    "mmlu/dev": lambda n: {
        "subject": ("anatomy", "virology")[n % 2],
        "question": question(n + 4),
        "choices": choices(n + 4),
        "answer": (n + 1) % 4,
    },
    "arc_zh/test": lambda n: {
        "id": str(n),
        "instruction": frage(n),
        **{f"option_{letter.lower()}": ORTE[(n + k) % 5] for k, letter in enumerate(LETTERS)},
        "answer": LETTERS[n % 4],
    },
    "xcopa_zh/test": lambda n: {
        "premise": f"{MEN[n % 5]}很高兴。",
        "choice1": f"他去了{ORTE[n % 5]}。",
        "choice2": "路很长。",
        "question": ("cause", "effect")[n % 2],
        "label": n % 2,
    },
    "xnli_zh/validation": lambda n: {"premise": frage(n), "hypothesis": f"{MEN[n % 5]}很高兴。", "label": n % 3},
    "ceval/law_val": exam,
    "ceval/law_dev": lambda n: exam(n + 3),
    "cmmlu/arts_test": lambda n: {key.replace("qu", "Qu").replace("an", "An"): text for key, text in exam(n).items()},
    "cmmlu/arts_dev": lambda n: {
        key.replace("qu", "Qu").replace("an", "An"): text for key, text in exam(n + 2).items()
    },
    "lambada_openai/test": lambda n: {"text": question(n)[:-1]},
    "humaneval/test": lambda n: {
        "task_id": f"t/{n}",
        "prompt": f"def add_{n}(value):\n",
        "test": f"def check(f): assert f(1) == {n + 1}",
        "entry_point": f"add_{n}",
    },
}
EXAMPLES = 12  # rows of the splits that examples are drawn from


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_benchmarks(folder: Path, wanted: str = "") -> Path:
    """Write all small benchmarks (those whose file names begin with `wanted`) into a folder."""
    for name, make in FILES.items():
        if name.startswith(wanted):
            count = EXAMPLES if name.endswith(("train", "dev")) else N
            write_rows(folder / f"{name}.jsonl", [make(number) for number in range(count)])
    return folder

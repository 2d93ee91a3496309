"""Benchmarks from local files: where each one's rows lie, which fields they have, and what is wrong with them.

Nothing here goes to a network. Fields are those that the harness's own definitions read.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from xmodel.errors import UserError

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
Rows = list[dict[str, Any]]


class Data(NamedTuple):
    """The rows of one benchmark."""

    hub: str  # dataset of the Hugging Face hub
    splits: str  # what is scored, with room for its size (sizes.py), then where examples come from
    licence: str
    texts: tuple[str, ...]  # fields that must be strings, and not empty
    choices: tuple[str, ...] = ()  # fields of the choices; one name: a list of them
    answer: str = ""  # field of the right choice
    answers: tuple[Any, ...] = ()  # what it may be; (): an index into the choices
    blank: tuple[str, ...] = ()  # fields that must be strings, and may be empty
    example: str = ""


LETTERS = ("A", "B", "C", "D", "E")
DATA = {
    "arc_challenge": Data(
        "allenai/ai2_arc, ARC-Challenge",
        "test {rows}; train 1,119",
        "CC BY-SA 4.0",
        ("question",),
        ("choices.text",),
        "answerKey",
        example='{"question": "Which gas do plants take in?", "choices": {"text": ["oxygen", "carbon dioxide"], '
        '"label": ["A", "B"]}, "answerKey": "B"}',
    ),
    "arc_easy": Data(
        "allenai/ai2_arc, ARC-Easy",
        "test {rows}; train 2,251",
        "CC BY-SA 4.0",
        ("question",),
        ("choices.text",),
        "answerKey",
        example='{"question": "Which is a liquid?", "choices": {"text": ["ice", "water"], "label": ["A", "B"]}, '
        '"answerKey": "B"}',
    ),
    "boolq": Data(
        "aps/super_glue, boolq",
        "validation {rows}; train 9,427",
        "CC BY-SA 3.0",
        ("question", "passage"),
        answer="label",
        answers=(0, 1),
        example='{"passage": "Iron rusts in damp air.", "question": "does iron rust", "label": 1}',
    ),
    "hellaswag": Data(
        "Rowan/hellaswag",
        "validation {rows}; train 39,905",
        "MIT",
        ("activity_label", "ctx_a"),
        ("endings",),
        "label",
        blank=("ctx_b",),
        example='{"activity_label": "Baking", "ctx_a": "She opens the oven.", "ctx_b": "then she", '
        '"endings": ["takes out the bread.", "swims away."], "label": "0"}',
    ),
    "openbookqa": Data(
        "allenai/openbookqa, main",
        "test {rows}; train 4,957",
        "Apache-2.0",
        ("question_stem",),
        ("choices.text",),
        "answerKey",
        example='{"question_stem": "A magnet attracts", "choices": {"text": ["wood", "iron"], "label": ["A", "B"]}, '
        '"answerKey": "B"}',
    ),
    "piqa": Data(
        "baber/piqa",
        "validation {rows}; train 16,113",
        "AFL-3.0",
        ("goal",),
        ("sol1", "sol2"),
        "label",
        example='{"goal": "To cool soup", "sol1": "blow on it.", "sol2": "heat it.", "label": 0}',
    ),
    "sciq": Data(
        "allenai/sciq",
        "test {rows}; train 11,679",
        "CC BY-NC 3.0",
        ("question", "distractor1", "distractor2", "distractor3", "correct_answer"),
        blank=("support",),
        example='{"support": "", "question": "What do bees make?", "distractor1": "milk", "distractor2": "silk", '
        '"distractor3": "ink", "correct_answer": "honey"}',
    ),
    "triviaqa": Data(
        "mandarjoshi/trivia_qa, rc.nocontext",
        "validation {rows}; train 138,384",
        "Apache-2.0 (questions: their authors)",
        ("question",),
        ("answer.aliases",),
        example='{"question": "Which city is the capital of Norway", "answer": {"aliases": ["Oslo", "Christiania"]}}',
    ),
    "winogrande": Data(
        "allenai/winogrande, winogrande_xl",
        "validation {rows}; train 40,398",
        "Apache-2.0",
        ("sentence",),
        ("option1", "option2"),
        "answer",
        ("1", "2"),
        example='{"sentence": "The cup fell off the shelf because the _ was tilted.", "option1": "cup", '
        '"option2": "shelf", "answer": "2"}',
    ),
    "bbh": Data(
        "SaylorTwift/bbh, one set a task",
        "test {rows} (27 tasks of 146 to 250)",
        "MIT",
        ("input", "target"),
        example='{"input": "not ( True ) and ( True ) is", "target": "False"}',
    ),
    "gsm8k": Data(
        "openai/gsm8k, main",
        "test {rows}; train 7,473",
        "MIT",
        ("question", "answer"),
        example='{"question": "Two boxes hold 3 pens each. How many pens?", "answer": "2*3 = <<2*3=6>>6\\n#### 6"}',
    ),
    "mmlu": Data(
        "cais/mmlu, one set a subject",
        "test {rows}; dev 285 (57 subjects)",
        "MIT",
        ("question",),
        ("choices",),
        "answer",
        example='{"subject": "anatomy", "question": "How many lungs has a human?", "choices": ["1", "2", "3", "4"], '
        '"answer": 1}',
    ),
    "arc_zh": Data(
        "alexandrainst/m_arc, zh",
        "test {rows}",
        "CC BY-NC 4.0",
        ("instruction",),
        ("option_a", "option_b", "option_c", "option_d", "option_e"),
        "answer",
        LETTERS,
        example='{"id": "1", "instruction": "植物吸收哪种气体？", "option_a": "氧气", "option_b": "二氧化碳", '
        '"answer": "B"}',
    ),
    "xcopa_zh": Data(
        "cambridgeltl/xcopa, zh",
        "test {rows}; validation 100",
        "CC BY 4.0",
        ("premise",),
        ("choice1", "choice2"),
        "label",
        example='{"premise": "天黑了。", "choice1": "他开了灯。", "choice2": "他睡醒了。", "question": "effect", '
        '"label": 0}',
    ),
    "xnli_zh": Data(
        "facebook/xnli, zh",
        "validation {rows}; train 392,702",
        "CC BY-NC 4.0",
        ("premise", "hypothesis"),
        answer="label",
        answers=(0, 1, 2),
        example='{"premise": "他在吃苹果。", "hypothesis": "他在吃水果。", "label": 0}',
    ),
    "ceval": Data(
        "ceval/ceval-exam, one set a subject",
        "val {rows}; dev 260 (52 subjects)",
        "CC BY-NC-SA 4.0",
        ("question",),
        ("A", "B", "C", "D"),
        "answer",
        LETTERS[:4],
        example='{"subject": "law", "question": "一年有几个月？", "A": "10", "B": "11", "C": "12", "D": "13", '
        '"answer": "C"}',
    ),
    "cmmlu": Data(
        "haonan-li/cmmlu, one set a subject",
        "test {rows}; dev 335 (67 subjects)",
        "CC BY-NC 4.0",
        ("Question",),
        ("A", "B", "C", "D"),
        "Answer",
        LETTERS[:4],
        example='{"subject": "arts", "Question": "钢琴有几个键？", "A": "66", "B": "77", "C": "88", "D": "99", '
        '"Answer": "C"}',
    ),
    "lambada_openai": Data(
        "EleutherAI/lambada_openai, default",
        "test {rows}",
        "MIT",
        ("text",),
        example='{"text": "The kettle boiled, and she poured the tea into the cup"}',
    ),
    "humaneval": Data(
        "openai/openai_humaneval",
        "test {rows}",
        "MIT",
        ("task_id", "prompt", "test", "entry_point"),
        example='{"task_id": "x/0", "prompt": "def one():\\n", "test": "def check(f): assert f() == 1", '
        '"entry_point": "one"}',
    ),
}
# GLUE's tasks differ in their fields: (texts, choices of the label).
GLUE = {
    "cola": (("sentence",), 2),
    "mnli": (("premise", "hypothesis"), 3),
    "mrpc": (("sentence1", "sentence2"), 2),
    "qnli": (("question", "sentence"), 2),
    "qqp": (("question1", "question2"), 2),
    "rte": (("sentence1", "sentence2"), 2),
    "sst2": (("sentence",), 2),
    "wnli": (("sentence1", "sentence2"), 2),
}
GLUE_SPLITS = {
    "cola": "validation {rows}; train 8,551",
    "mnli": "validation_matched {rows}, validation_mismatched 9,832; train 392,702",
    "mrpc": "validation {rows}; train 3,668",
    "qnli": "validation {rows}; train 104,743",
    "qqp": "validation {rows}; train 363,846",
    "rte": "validation {rows}; train 2,490",
    "sst2": "validation {rows}; train 67,349",
    "wnli": "validation {rows}; train 635",
}


def data_of(folder: str, subset: str) -> Data:
    """What the rows of a folder look like; `subset`: the task of GLUE."""
    if folder != "glue":
        return DATA[folder]
    texts, count = GLUE[subset]
    values = ", ".join(f'"{field}": "It rains."' for field in texts)
    return Data(
        f"nyu-mll/glue, {subset}",
        GLUE_SPLITS[subset],
        "research use; see gluebenchmark.com",
        texts,
        answer="label",
        answers=tuple(range(count)),
        example=f'{{{values}, "label": 1}}',
    )


def find_rows(root: Path, folder: str, subset: str, split: str) -> Path | None:
    """The file that holds a split: `SPLIT`, in a group `SUBSET_SPLIT`, `SUBSET/SPLIT`, or one for all subsets."""
    names = [split, f"{split}_prepared"]
    if subset:
        names = [f"{subset}_{split}", f"{subset}/{split}", *([subset] if split == "test" else []), split]
    for name in names:
        for ending in ENDINGS:
            if (path := root / folder / (name + ending)).is_file():
                return path
    return None


def read_rows(path: Path, folder: str, subset: str) -> Rows:
    """The checked rows of a file, those of `subset` alone where rows name their subject.

    Raises:
        UserError: a row that is not as documented, with file and line.
    """
    found = []
    for number, row in _parsed(path):
        where = f"{path}, {'row' if path.suffix == '.parquet' else 'line'} {number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: not an object")
        if subset and _shared(path, subset):
            if "subject" not in row:
                raise UserError(f"{where}: the field subject is missing; a file for all subjects needs it in each row")
            if row["subject"] != subset:
                continue
        found.append(_checked(row, folder, subset, where))
    return _alike(found)


@lru_cache(maxsize=4)
def _parsed(path: Path) -> list[tuple[int, Any]]:
    return list(_read(path))  # one file may hold the rows of many subjects


def _shared(path: Path, subset: str) -> bool:
    own = path.name.startswith((f"{subset}_", f"{subset}.")) or path.parent.name == subset
    return not own


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from enumerate(pq.read_table(path).to_pylist(), 1)
        return
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path}, line {number}: not JSON ({error})") from None


def _checked(row: dict[str, Any], folder: str, subset: str, where: str) -> dict[str, Any]:
    data = data_of(folder, subset)
    if folder == "hellaswag" and "query" in row:  # prepared as the harness would
        data = data._replace(texts=("query",), choices=("choices",), blank=())
    for field in data.texts + data.blank:
        value = _field(row, field, where)
        if not isinstance(value, str):
            raise UserError(f"{where}: {field} is {value!r}; it has to be a text")
        if field in data.texts and not value.strip():
            raise UserError(f"{where}: {field} is empty")
    choices = _choices(row, data, where, optional=folder == "arc_zh")
    if data.answer:
        answer, allowed = _field(row, data.answer, where), data.answers
        if data.choices == ("choices.text",):
            allowed = tuple(_field(row, "choices.label", where))
            answer = answer.lstrip() if isinstance(answer, str) else answer
        elif not allowed:
            allowed = tuple(range(len(choices)))
        if folder == "hellaswag":  # the original has its labels as texts
            allowed += tuple(map(str, allowed))
        if folder == "arc_zh":
            allowed = LETTERS[: len(choices)]
        if not any(answer == value and type(answer) is type(value) for value in allowed):
            raise UserError(
                f"{where}: {data.answer} is {answer!r}; it has to be one of {', '.join(map(repr, allowed))}"
            )
    if folder == "winogrande" and "_" not in row["sentence"]:
        raise UserError(f"{where}: sentence has no gap _")
    if folder == "xcopa_zh" and _field(row, "question", where) not in ("cause", "effect"):
        raise UserError(f"{where}: question is {row['question']!r}; it has to be 'cause' or 'effect'")
    if folder == "gsm8k" and "####" not in row["answer"]:
        raise UserError(f"{where}: answer has no #### before its number")
    if folder == "arc_zh":
        row = {"id": where, "option_c": "", "option_d": "", "option_e": ""} | row
    return row


def _choices(row: dict[str, Any], data: Data, where: str, optional: bool) -> Sequence[str]:
    if not data.choices:
        return ()
    if len(data.choices) == 1:
        choices = _field(row, data.choices[0], where)
        if not isinstance(choices, list) or not choices:
            raise UserError(f"{where}: {data.choices[0]} has to be a list of texts, and not empty")
        if data.choices == ("choices.text",) and len(choices) != len(_field(row, "choices.label", where)):
            raise UserError(f"{where}: choices.text and choices.label differ in length")
    else:
        fields = [field for field in data.choices if not optional or row.get(field)]
        if fields != list(data.choices[: len(fields)]):
            raise UserError(f"{where}: {data.choices[len(fields) - 1]} is given, but one before it is not")
        choices = [_field(row, field, where) for field in fields]
    for number, choice in enumerate(choices):
        if not isinstance(choice, str) or not choice.strip():
            raise UserError(f"{where}: choice {number + 1} is {choice!r}; a choice is a text, and not empty")
    if len(choices) < 2 and data.choices != ("answer.aliases",):
        raise UserError(f"{where}: {len(choices)} choice; a question needs two or more")
    return choices


def _field(row: dict[str, Any], name: str, where: str) -> Any:
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value or value[part] is None:
            raise UserError(f"{where}: the field {name} is missing")
        value = value[part]
    return value


def _alike(rows: Rows) -> Rows:
    """All rows with the fields of all: what one lacks is None."""
    fields = dict.fromkeys(field for row in rows for field in row)
    return [{field: row.get(field) for field in fields} for row in rows]

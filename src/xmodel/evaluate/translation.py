"""Simple Chinese-English translation: greedy output against a reference, by chrF and BLEU (sacrebleu)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodel.errors import UserError
from xmodel.evaluate.questions import TRANSLATION, Item, QuestionSet
from xmodel.inference.many import generate_many
from xmodel.inference.text import encode_prompt

EVERYDAY = Path(__file__).with_name("everyday_pairs.jsonl")
SAMPLES = 5  # translations kept in the results, to look at
GROUPS = 20  # of the jackknife
DISTRACTORS = 3  # wrong translations that each right one is ranked among
# Source and target language of each direction, and the target's tokenisation in BLEU.
DIRECTIONS = {"en_zh": ("English", "Chinese"), "zh_en": ("Chinese", "English")}
TOKENIZE = {"zh": "zh", "en": "13a"}


def read_pairs(path: Path = EVERYDAY) -> list[dict[str, Any]]:
    """Pairs {"zh": ..., "en": ...} of a file of JSON lines, each perhaps with a "split": "test" or "dev".

    Args:
        path: by default the 60 everyday sentences, and 8 for examples, that come with the software.

    Raises:
        UserError: no such file, no pair in it, or a line that is not a pair (file and line are named).
    """
    if not path.is_file():
        raise UserError(f"--pairs {path}: no such file; give JSON lines with the fields zh and en")
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error})") from None
        for field in ("zh", "en"):
            if not isinstance(row, dict) or not isinstance(row.get(field), str) or not row[field].strip():
                raise UserError(f'{path}, line {number}: a pair needs a text in the field "{field}"')
        if row.get("split", "test") not in ("test", "dev"):
            raise UserError(f'{path}, line {number}: split {row["split"]!r} is neither "test" nor "dev"')
        pairs.append(row)
    if not pairs:
        raise UserError(f"--pairs {path}: holds no pair")
    return pairs


def pair_sets(pairs: Sequence[dict[str, Any]], shots: int, limit: int | None = None) -> list[QuestionSet]:
    """The question sets of both directions: prompts `English: ...\\nChinese:`, to be continued.

    Each right translation is ranked among those of the `DISTRACTORS` other pairs whose targets are nearest in length.

    Args:
        shots: most examples that will be asked for. Where no pair is marked "dev", the first `shots` pairs are
            examples and are not scored.
        limit: keep only the first pairs that are scored.

    Raises:
        UserError: too few pairs.
    """
    dev = [pair for pair in pairs if pair.get("split") == "dev"]
    test = [pair for pair in pairs if pair.get("split") != "dev"]
    if not dev:
        dev, test = test[:shots], test[shots:]
    if len(dev) < shots or len(test) <= DISTRACTORS:
        raise UserError(
            f"{len(pairs)} pairs are too few: {shots} shots need as many examples, of which {len(dev)} are there, and "
            f"ranking needs {DISTRACTORS + 1} pairs to score, of which {len(test)} are there"
        )
    sets = []
    for direction, (source_name, target_name) in DIRECTIONS.items():
        source, target = direction.split("_")
        name = TRANSLATION + direction
        everything = sorted({pair[target] for pair in test}, key=lambda text: (len(text), text))
        questions = QuestionSet(name, target)
        for split, own in (("test", test[:limit]), ("dev", dev)):
            for number, pair in enumerate(own):
                right = pair[target]
                nearest = sorted(everything, key=lambda text: (abs(len(text) - len(right)), text))
                others = [text for text in nearest if text != right][:DISTRACTORS]
                place = number % (len(others) + 1)
                choices = tuple(" " + text for text in [*others[:place], right, *others[place:]])
                prompt = f"{source_name}: {pair[source]}\n{target_name}:"
                item = Item(f"{name}/{split}/{number}", prompt, choices, place, pair[source], right)
                (questions.test if split == "test" else questions.dev).append(item)
        sets.append(questions)
    return sets


def score_translation(model: Any, tokenizer: Any, questions: QuestionSet, shots: int, bos: bool) -> dict[str, Any]:
    """chrF and BLEU of greedy translations, which end at a newline.

    Returns:
        results: two rows, `chrf` and `bleu`. The value is the corpus's, 0 to 100, as sacrebleu has it (the row holds
            its signature); `chance` is the score of answering each item with the next item's reference: fluent and
            unrelated.
        items: per item its id, the output and its own chrF. samples: a few with source and reference.
        truncated: prompts that lost their beginning, because they did not fit into the model's context.
    """
    started = time.monotonic()
    items = questions.test
    references = [item.reference for item in items]
    longest = max(map(len, tokenizer.encode_batch(references)))
    room = min(longest * 3 // 2 + 8, model.config.context_length // 2)
    fits = model.config.context_length - room
    prompts = [encode_prompt(tokenizer, questions.prompt(item, shots), bos) for item in items]
    # A text ends the answer, not a token: a newline may share a piece with the punctuation before it, which counts.
    answers = generate_many(
        model,
        [ids[-fits:] for ids in prompts],
        max_new_tokens=room,
        stop_ids=() if tokenizer.eos_id is None else (tokenizer.eos_id,),
        stop_texts=[["\n"]] * len(prompts),
        decode=tokenizer.decode,
    )
    outputs = [tokenizer.decode(ids).split("\n")[0].strip() for ids in answers]

    unrelated = references[1:] + references[:1]
    seconds = round(time.monotonic() - started, 2)
    rows = []
    for measure, metric in metrics(questions.language).items():
        value, stderr = corpus_score(metric, outputs, references)
        rows.append(
            {
                "set": questions.name,
                "language": questions.language,
                "shots": shots,
                "metric": measure,
                "value": value,
                "stderr": stderr,
                "chance": corpus_score(metric, unrelated, references)[0],
                "items": len(items),
                "seconds": seconds,
                "signature": str(metric.get_signature()),
            }
        )
    chrf = metrics(questions.language)["chrf"]
    records = [
        {
            "id": item.id,
            "shots": shots,
            "output": output,
            "sentence_chrf": round(chrf.sentence_score(output, [item.reference]).score, 2),
        }
        for item, output in zip(items, outputs, strict=True)
    ]
    samples = [
        {"source": item.source, "reference": item.reference, "output": output, "set": questions.name, "shots": shots}
        for item, output in zip(items[:SAMPLES], outputs, strict=False)
    ]
    return {
        "results": rows,
        "items": records,
        "samples": samples,
        "truncated": sum(len(ids) > fits for ids in prompts),
    }


def metrics(language: str) -> dict[str, Any]:
    """sacrebleu's metrics for a target language: chrF2 (6 characters, no words) and BLEU (by characters in Chinese)."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return {"chrf": CHRF(), "bleu": BLEU(tokenize=TOKENIZE.get(language, "13a"))}


def corpus_score(metric: Any, outputs: Sequence[str], references: Sequence[str]) -> tuple[float, float | None]:
    """A corpus score of sacrebleu's and its standard error.

    The error is the grouped jackknife's: the score without each of `GROUPS` parts of the items in turn.
    (sacrebleu's own bootstrap fails when a resample scores zero.) Of a single item no error is known.
    """

    def score(places: Sequence[int]) -> float:
        return float(metric.corpus_score([outputs[i] for i in places], [[references[i] for i in places]]).score)

    n = len(outputs)
    groups = min(GROUPS, n)
    value = score(range(n))
    if groups < 2:
        return value, None
    without = [score([i for i in range(n) if i % groups != group]) for group in range(groups)]
    mean = sum(without) / groups
    return value, math.sqrt((groups - 1) / groups * sum((part - mean) ** 2 for part in without))

"""The ruler: question sets that are well-formed, right, unseen in training text, and give nothing away."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache

import pytest

from xmodel.corpus.sandbox import PARTS, SETS, documents, question_sets
from xmodel.corpus.sandbox.compose import QUESTION_FAMILIES
from xmodel.corpus.sandbox.draw import PEOPLE, PETS, THINGS, Draw, split_of
from xmodel.corpus.sandbox.tables import DAYS, MONTHS, SIZES, SPEEDS


@cache
def items(name: str) -> tuple[dict, ...]:
    """800 test items: enough for a guess at chance to stay within 0.08 of it."""
    return tuple(item for item in question_sets(0, test=800, dev=0)[name])


@cache
def training_text(part: str) -> str:
    return "\n\n".join(document.text for document in documents(part, 20_000, 0))


def parts_of(name: str) -> list[str]:
    return ["parallel"] if name.startswith("translation") else [name[-2:]]


@pytest.mark.parametrize("name", SETS)
def test_items_are_well_formed(name):
    found = question_sets(3, test=100, dev=20)[name]
    assert [item["split"] for item in found] == ["test"] * 100 + ["dev"] * 20
    assert [item["id"] for item in found] == [f"{name}/test/{i}" for i in range(100)] + [
        f"{name}/dev/{i}" for i in range(20)
    ]
    assert len({item["prompt"] for item in found}) == 120
    for item in found:
        assert item["set"] == name
        assert item["language"] == name[-2:]
        assert 2 <= len(item["choices"]) == len(set(item["choices"])) <= 4
        assert 0 <= item["answer"] < len(item["choices"])
        assert not item["prompt"].endswith(" ")
        spaced = item["language"] == "en" or name.startswith("translation")
        assert all(choice.startswith(" ") == spaced and choice.strip() for choice in item["choices"])
        if name.startswith("translation"):
            assert item["choices"][item["answer"]] == " " + item["reference"]
            assert item["source"] in item["prompt"]
            assert "\n" not in item["reference"]


def test_more_items_begin_with_the_same_ones():
    few, many = question_sets(1, test=50, dev=8), question_sets(1, test=90, dev=16)
    for name in SETS:
        assert few[name] == many[name][:50] + many[name][90:98]
    assert question_sets(2, test=50, dev=8) != few


@pytest.mark.parametrize("name", SETS)
def test_answer_positions_are_uniform(name):
    for number in (2, 3, 4):
        answers = [
            item["answer"]
            for item in question_sets(0)[name]
            if len(item["choices"]) == number and item["split"] == "test"
        ]
        for position in range(number):
            assert abs(answers.count(position) - len(answers) / number) <= 0.05 * len(answers) + 2


# ---- the questions are unseen


@pytest.mark.parametrize("name", SETS)
def test_no_prompt_occurs_in_training_text(name):
    for part in parts_of(name):
        text = training_text(part)
        for item in question_sets(0)[name] + question_sets(1, 50, 8)[name]:
            assert item["prompt"] not in text


def test_no_held_out_name_occurs_in_training_text():
    english = Counter(re.findall(r"\w+", training_text("en")))
    for names in (
        [person.name for person in PEOPLE["en"]["test"] + PEOPLE["en"]["dev"]],
        PETS["en"]["test"],
        THINGS["en"]["test"] + THINGS["en"]["dev"],
    ):
        assert not any(name in english for name in names)
    chinese = training_text("zh")
    assert not any(person.name in chinese for person in PEOPLE["zh"]["test"] + PEOPLE["zh"]["dev"])


def test_no_held_out_combination_occurs_in_training_text():
    for part in ("en", "zh"):
        text = training_text(part)[:3_000_000]
        for a, b in re.findall(r"(\d+) ?(?:\+|plus|加|再加上) ?(\d+)", text):
            if max(int(a), int(b)) < 10:
                assert split_of(f"sum|{min(int(a), int(b))}|{max(int(a), int(b))}") == "train"
        for a, b in re.findall(r"(\d+)(?: is (?:larger|smaller) than |比)(\d+)", text):
            assert split_of(f"numbers|{min(int(a), int(b))}|{max(int(a), int(b))}") == "train"
        for scale, key in ((SIZES[part], "bigger"), (SPEEDS[part], "faster")):
            for low in range(len(scale)):
                for high in range(low + 1, len(scale)):
                    if split_of(f"{key}|{low}|{high}") != "train":
                        words = (scale[low], scale[high])
                        for first, second in (words, words[::-1]):
                            assert f"{first} or {second}" not in text
                            assert f"{first} is bigger than {second}" not in text.lower()
                            assert not re.search(f"{first}[和比]{second}", text)


def test_held_out_sentences_do_not_occur_in_training_text():
    lines = set(re.findall(r"(?:English|Chinese): (.*)", training_text("parallel")))
    for name in ("translation_en_zh", "translation_zh_en"):
        for item in items(name):
            assert item["source"] not in lines
            assert item["reference"] not in lines


# ---- the answers are right, by another way


def solved(name: str, family: str) -> list[tuple[str, str]]:
    kind, language = name.split("_")
    draw = Draw("test", language)
    pairs = []
    for i in range(150):
        draw.restart(0, 99, i)
        item = QUESTION_FAMILIES[language][kind][family](draw)
        pairs.append((item.prompt, item.answer.strip().rstrip(".。")))
    return pairs


@pytest.mark.parametrize("language", ["en", "zh"])
def test_sums_and_comparisons_are_right(language):
    for prompt, answer in solved(f"commonsense_{language}", "numbers"):
        a, b = map(int, re.findall(r"\d+", prompt))
        assert int(answer) == (max if re.search("larger|大", prompt) else min)(a, b)
    for prompt, answer in solved(f"commonsense_{language}", "sums"):
        a, b = map(int, re.findall(r"\d+", prompt))
        assert int(answer) == (a - b if re.search("eats|吃", prompt) else a + b)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_calendar_is_right(language):
    steps = {"one day before": -1, "one day after": 1, "two days after": 2, "前一天": -1, "后一天": 1, "两天后": 2}
    for prompt, answer in solved(f"commonsense_{language}", "days"):
        (start,) = (i for i, day in enumerate(DAYS[language]) if day in prompt)
        (step,) = (value for words, value in steps.items() if words in prompt)
        assert answer == DAYS[language][(start + step) % 7]
    for prompt, answer in solved(f"commonsense_{language}", "months"):
        start = MONTHS[language].index(max((month for month in MONTHS[language] if month in prompt), key=len))
        assert answer == MONTHS[language][(start + (1 if re.search("after|后一", prompt) else -1)) % 12]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_scales_are_right(language):
    for prompt, answer in solved(f"commonsense_{language}", "sizes"):
        scale = (
            SPEEDS[language]
            if re.search("faster|slower|快|慢(?!？)", prompt.split("哪个")[-1]) or "慢" in prompt
            else SIZES[language]
        )
        other = [thing for thing in scale if thing in prompt.replace(answer, "", 1) and thing not in answer]
        up = bool(re.search("bigger|faster|更大|更快", prompt))
        assert any((scale.index(answer) > scale.index(thing)) == up for thing in other)


@pytest.mark.parametrize("name", ["facts_en", "facts_zh", "cloze_en", "cloze_zh"])
def test_readings_have_the_answer_and_the_distractors_in_the_passage(name):
    kind, language = name.split("_")
    for family in {"facts": ("owners", "places", "colours"), "cloze": ("fetch", "gift")}[kind]:
        draw = Draw("test", language)
        for i in range(60):
            draw.restart(1, 99, i)
            item = QUESTION_FAMILIES[language][kind][family](draw)
            assert item.answer in item.pool
            for choice in item.pool:
                words = re.split(r" |[在是有吃送]|喜欢|想要", re.sub("[的里]*[.。]$", "", choice.strip()))
                assert words[-1] in item.prompt


# ---- nothing but knowing gives the answer away


def accuracy(name: str, score) -> tuple[float, float]:
    """(expected accuracy of picking the best-scored choice, ties broken evenly; chance)."""
    right = 0.0
    for item in items(name):
        scores = [score(item, choice) for choice in item["choices"]]
        best = [i for i, value in enumerate(scores) if value == max(scores)]
        right += (item["answer"] in best) / len(best)
    return right / len(items(name)), sum(1 / len(item["choices"]) for item in items(name)) / len(items(name))


@cache
def unigrams(part: str) -> Counter:
    return Counter(re.findall(r"[a-z]+|\d|[^a-z\s]", training_text(part).lower()))


@cache
def unigram(name: str, choice: str, mean: bool) -> float:
    counts = unigrams(parts_of(name)[0])
    total = sum(counts.values())
    values = [math.log((counts[token] + 0.5) / total) for token in re.findall(r"[a-z]+|\d|[^a-z\s]", choice.lower())]
    return round(sum(values) / (len(values) if mean else 1), 9)


@cache
def answers_in_training(part: str) -> Counter:
    return Counter(re.findall(r"(?:Answer:|答案：|Chinese:|English:)(.*)", training_text(part)))


@cache
def occurrences(part: str, choice: str) -> int:
    return training_text(part)[:1_000_000].count(choice)


def likeness(item: dict, choice: str) -> float:
    """How many characters a choice shares with the other choices, place by place from both ends."""
    others = [other for other in item["choices"] if other != choice]
    return sum(
        sum(a == b for a, b in zip(choice, other, strict=False))
        + sum(a == b for a, b in zip(choice[::-1], other[::-1], strict=False))
        for other in others
    )


BASELINES = {
    "shortest": lambda item, choice: -len(choice),
    "longest": lambda item, choice: len(choice),
    "unigram": lambda item, choice: unigram(item["set"], choice, mean=False),
    "unigram per token": lambda item, choice: unigram(item["set"], choice, mean=True),
    "most frequent answer": lambda item, choice: answers_in_training(parts_of(item["set"])[0])[choice],
    "most frequent in text": lambda item, choice: occurrences(parts_of(item["set"])[0], choice),
    "most like the others": likeness,
    "least like the others": lambda item, choice: -likeness(item, choice),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("baseline", BASELINES)
def test_guessing_without_understanding_is_at_chance(name, baseline):
    value, chance = accuracy(name, BASELINES[baseline])
    assert abs(value - chance) < 0.08, f"{baseline} scores {value:.3f} on {name}, chance is {chance:.3f}"


def test_every_part_practises_the_formats():
    """A model can know the formats of the questions from its training text: a good third of it is exercises."""
    shares = {}
    for part in PARTS:
        marks = ("Answer:", "答案：") if part != "parallel" else ("English:",)
        texts = [document.text for document in documents(part, 2000, 0)]
        shares[part] = sum(len(text) for text in texts if any(mark in text for mark in marks)) / sum(map(len, texts))
    assert shares["parallel"] > 0.9
    assert all(0.3 < shares[part] < 0.6 for part in ("en", "zh")), shares

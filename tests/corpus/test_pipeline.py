"""The corpus stage as a whole: what goes in is kept, held out or dropped with a reason, and the funnel says so."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xmodel.corpus import batches
from xmodel.corpus.folding import fold_texts
from xmodel.corpus.pipeline import build_corpus
from xmodel.errors import UserError
from xmodel.recipe.settings import Corpus, Filters, Source

COLUMNS = ["id", "text", "language", "source", "category", "provenance", "licence", "place", "perplexity"]
ENGLISH = "The lighthouse keeper climbed the stairs and lit the lamp, number {}."
CHINESE = "每天傍晚，守塔人都会爬上楼梯，点亮第{}盏灯。"


def write(path: Path, texts: list[str]) -> str:
    path.write_text(
        "".join(json.dumps({"id": f"{path.stem}-{n}", "text": text}) + "\n" for n, text in enumerate(texts))
    )
    return str(path)


def rows(folder: Path, pattern: str) -> list[dict]:
    return [row for path in sorted(folder.glob(pattern)) for row in pq.read_table(path).to_pylist()]


def build(settings: Corpus, folder: Path, seed: int = 0) -> dict:
    folder.mkdir()
    funnel = build_corpus(settings, seed=seed, folder=folder)
    assert json.loads((folder / "funnel.json").read_text()) == funnel
    return funnel


TEXTS = st.one_of(
    st.integers(0, 30).map(ENGLISH.format),
    st.integers(0, 30).map(CHINESE.format),
    st.integers(0, 30).map(lambda number: ENGLISH.format(number).upper() + " "),
    st.text(max_size=60),
    st.just("#$%^&*~`{}|" * 9),
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.lists(TEXTS, max_size=25), min_size=1, max_size=3),
    st.lists(TEXTS, max_size=10),
    st.sampled_from([0.0, 0.2]),
    st.booleans(),
)
def test_nothing_is_lost_and_nothing_leaks(sources, validation, holdout, deduplicate):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BATCH_DOCUMENTS", 7)
        folder = Path(name)
        survivor = "A document of its own, which survives whatever the others are like: {}."
        corpus = Corpus(holdout=holdout, deduplicate=deduplicate, keep_dropped=True)
        texts: dict[str, list[str]] = {}
        for number, own in enumerate([*sources, validation]):
            source = f"source{number}"
            texts[source] = [*own, *(survivor.format(f"{source} {copy}") for copy in range(12))]
            made = Source(
                name=source, paths=[write(folder / f"{source}.jsonl", texts[source])], category="web", weight=0.1
            )
            (corpus.sources if number < len(sources) else corpus.validation).append(made)
        out = folder / "corpus"
        funnel = build(corpus, out)

        train, held, dropped = rows(out, "train/*"), rows(out, "validation/*"), rows(out, "dropped/*")
        # Every document is in exactly one place, unchanged.
        everywhere = {row["id"]: row["text"] for row in (*train, *held, *dropped)}
        assert len(train) + len(held) + len(dropped) == len(everywhere) == sum(map(len, texts.values()))
        assert everywhere == {f"{name}-{n}": text for name, own in texts.items() for n, text in enumerate(own)}
        # Order is kept, columns and files are as promised.
        for source in corpus.sources:
            table = pq.read_table(out / "train" / f"{source.name}.parquet")
            assert table.schema.names == COLUMNS
            ordinals = [int(row["id"].split("-")[1]) for row in table.to_pylist()]
            assert ordinals == sorted(ordinals)
        # No text stands on both sides; with deduplication none stands twice.
        folded_train, folded_held = fold_texts([r["text"] for r in train]), fold_texts([r["text"] for r in held])
        assert not set(folded_train) & set(folded_held)
        if deduplicate:
            assert len(set(folded_train + folded_held)) == len(train) + len(held)
        # The funnel tells the same story, and sums up.
        for name, part in (*funnel["sources"].items(), ("total", funnel["total"])):
            of = [[row for row in kind if name in ("total", row["source"])] for kind in (train, held, dropped)]
            figures = [part["kept"], part["validation"], *part["dropped"].values()]
            for unit in ("documents", "bytes"):
                assert part["read"][unit] == sum(amount[unit] for amount in figures)
            assert part["kept"]["documents"] == len(of[0]) == sum(a["documents"] for a in part["languages"].values())
            assert part["kept"]["bytes"] == sum(len(row["text"].encode()) for row in of[0])
            assert part["validation"]["documents"] == len(of[1])
            reasons = [row["reason"] for row in of[2]]
            assert {r: a["documents"] for r, a in part["dropped"].items()} == {
                r: reasons.count(r) for r in set(reasons)
            }
        for language, amount in funnel["validation"].items():
            assert amount["documents"] == len(rows(out, f"validation/{language}.parquet"))


def small(folder: Path, **changed) -> Corpus:
    english = write(folder / "en.jsonl", [ENGLISH.format(number) for number in range(300)])
    chinese = write(folder / "zh.jsonl", [CHINESE.format(number) for number in range(300)])
    sources = [Source(name="en", paths=[english], weight=0.5), Source(name="zh", paths=[chinese], weight=0.5)]
    return Corpus(sources=sources, **{"holdout": 0.1} | changed)


def test_the_same_recipe_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        build(small(tmp_path), tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert [str(path) for path in files] == [
        "funnel.json", "train/en.parquet", "train/zh.parquet", "validation/en.parquet", "validation/zh.parquet",
    ]  # fmt: skip
    assert all((tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes() for path in files)


def test_each_language_gives_its_share_to_validation(tmp_path):
    funnel = build(small(tmp_path), tmp_path / "corpus")
    assert all(15 < funnel["validation"][language]["documents"] < 50 for language in ("en", "zh"))


def test_training_text_never_equals_text_of_a_validation_source(tmp_path):
    corpus = small(tmp_path, deduplicate=False, holdout=0.0)
    own = write(tmp_path / "own.jsonl", [ENGLISH.format(number).upper() for number in range(20)] * 2)
    corpus.validation = [Source(name="own", paths=[own])]
    funnel = build(corpus, tmp_path / "corpus")
    assert funnel["sources"]["own"]["validation"]["documents"] == 40
    assert funnel["sources"]["en"]["dropped"] == {"in_validation": {"documents": 20, "bytes": 20 * 69 - 10}}


def test_a_source_without_survivors_is_refused_with_the_reasons(tmp_path):
    corpus = small(tmp_path, filters=Filters(min_characters=80))
    with pytest.raises(
        UserError, match=r"corpus\.sources\[0\] \(en\): no document is left of 300: dropped 300 too_short"
    ):
        build(corpus, tmp_path / "corpus")
    corpus = small(tmp_path)
    corpus.sources[1].paths = corpus.sources[0].paths
    with pytest.raises(
        UserError, match=r"corpus\.sources\[1\] \(zh\): no document is left of 300: dropped 300 duplicate"
    ):
        build(corpus, tmp_path / "other")


def test_a_language_without_validation_text_is_told(tmp_path, capsys):
    build(small(tmp_path, holdout=0.0), tmp_path / "corpus")
    errors = capsys.readouterr().err
    assert all(f"no {language} document was held out" in errors for language in ("en", "zh"))


@pytest.fixture(scope="module")
def dirty(tmp_path_factory) -> tuple[Path, dict]:
    sources = [
        Source(name="en", reader="sandbox", paths=["en"], language="en", documents=3000),
        Source(name="zh", reader="sandbox", paths=["zh"], language="zh", documents=3000),
        Source(name="both", reader="sandbox", paths=["parallel"], documents=1500),
    ]
    folder = tmp_path_factory.mktemp("dirty") / "corpus"
    return folder, build(Corpus(sources=sources, dirt=0.2, keep_dropped=True), folder, seed=9)


@pytest.mark.parametrize(
    ("label", "recall"),
    [
        ("boilerplate", 0.95),
        ("exact_duplicate", 1.0),
        ("leaked_question", 1.0),
        ("list_without_sentences", 0.95),
        ("mojibake", 0.95),
        ("repeated_lines", 0.95),
        ("symbol_soup", 0.95),
        ("too_short", 1.0),
        ("wrong_language", 0.6),  # French, German and Spanish look English to their letters
    ],
)
def test_labelled_dirt_is_caught(dirty, label, recall):
    score = dirty[1]["dirt"][label]
    assert score["made"] > 50
    assert score["recall"] >= recall
    assert score["precision"] >= 0.98
    assert sum(score["reasons"].values()) == score["caught"] == round(score["recall"] * score["made"])


def test_clean_text_is_not_dropped(dirty):
    clean = dirty[1]["clean"]
    assert clean["made"] > 5000
    assert clean["dropped"] <= 0.002 * clean["made"]


def test_dropped_text_is_kept_aside_with_its_reason_and_label(dirty):
    folder, funnel = dirty
    dropped = rows(folder, "dropped/*")
    assert set(dropped[0]) == {*COLUMNS, "reason", "label", "bytes", "equals"}
    assert len(dropped) == sum(amount["documents"] for amount in funnel["total"]["dropped"].values())


def test_question_sets_are_written_for_evaluation(dirty):
    files = sorted((dirty[0] / "questions").glob("*.jsonl"))
    assert [path.stem for path in files] == sorted(
        f"{kind}_{language}"
        for kind, languages in {
            "commonsense": "en zh",
            "facts": "en zh",
            "cloze": "en zh",
            "translation": "en_zh zh_en",
        }.items()
        for language in languages.split()
    )
    for path in files:
        items = [json.loads(line) for line in path.read_text().splitlines()]
        assert {item["split"] for item in items} == {"test", "dev"}
        assert {item["set"] for item in items} == {path.stem}

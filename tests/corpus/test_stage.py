"""The corpus stage as a whole: what its parts do together, through a recipe and the command line."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from command import xmodel

from xmodel.cli import cli
from xmodel.corpus import sources
from xmodel.corpus.funnel import Counts
from xmodel.corpus.pipeline import build_corpus
from xmodel.errors import UserError
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Corpus, Filters, LineFilters, NearDuplicates, Quality, Source

WORDS = [
    "harbour",
    "lamp",
    "keeper",
    "winter",
    "letter",
    "garden",
    "copper",
    "river",
    "window",
    "morning",
    "stone",
    "market",
    "violin",
    "forest",
    "engine",
    "captain",
    "silver",
    "bridge",
    "teacher",
    "orchard",
    "signal",
    "blanket",
    "station",
    "mirror",
    "thunder",
    "candle",
    "village",
    "compass",
    "barrel",
    "meadow",
]


def story(seed: int, sentences: int = 12) -> str:
    """A text of its own: sentences of words drawn at random."""
    draw = random.Random(seed)
    made = (" ".join(draw.choice(WORDS) for _ in range(draw.randint(6, 11))) for _ in range(sentences))
    return " ".join(f"The {words} of the {draw.choice(WORDS)}." for words in made)


def edited(text: str, share: float, seed: int) -> str:
    draw = random.Random(seed)
    return "".join(
        draw.choice("aeiou") if character.isalpha() and draw.random() < share else character for character in text
    )


def write(path: Path, records: list[dict]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return str(path)


def build(settings: Corpus, folder: Path) -> dict:
    folder.mkdir(parents=True)
    return build_corpus(settings, seed=1, folder=folder)


def rows(folder: Path, part: str) -> list[dict]:
    return [row for path in sorted(folder.glob(f"{part}/*.parquet")) for row in pq.read_table(path).to_pylist()]


# ── Duplicates, within and across sources and corpora ────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Two sources; the second has an exact copy, a near copy and a traditional copy of documents of the first."""
    folder = tmp_path_factory.mktemp("duplicates")
    first = [{"id": f"first-{n}", "text": story(n)} for n in range(40)]
    chinese = "漢語書籍放在圖書館裡面，關於歷史與藝術的書特別受歡迎，學生們經常來這裡閱讀。"
    first.append(
        {
            "id": "han",
            "text": chinese.translate(
                str.maketrans(
                    "漢語書籍圖館裡關於歷與藝術別歡學們經來這閱讀", "汉语书籍图馆里关于历与艺术别欢学们经来这阅读"
                )
            ),
        }
    )
    second = [{"id": f"second-{n}", "text": story(100 + n)} for n in range(40)]
    second += [
        {"id": "exact", "text": first[3]["text"].upper()},
        {"id": "near", "text": edited(first[5]["text"], 0.01, 7)},
        {"id": "near-too", "text": edited(first[5]["text"], 0.01, 8)},
        {"id": "traditional", "text": chinese},
    ]
    write(folder / "first.jsonl", first)
    write(folder / "second.jsonl", second)
    (folder / "recipe.yaml").write_text(
        "name: twice\ncorpus:\n  keep_index: true\n  holdout: 0\n  sources:\n"
        "    - {name: first, paths: [first.jsonl], weight: 0.5}\n"
        "    - {name: second, paths: [second.jsonl], weight: 0.5, licence: CC0, category: story}\n"
        "  validation: [{name: own, paths: [own.jsonl]}]\nmodel: {preset: nano}\n"
    )
    write(folder / "own.jsonl", [{"id": f"own-{n}", "text": story(500 + n)} for n in range(4)])
    result = xmodel("corpus", folder / "recipe.yaml", "--dir", folder / "run")
    assert result.returncode == 0, result.stderr
    return folder


def test_copies_are_dropped_across_sources(recipe):
    dropped = {row["id"]: row for row in rows(recipe / "run" / "corpus", "dropped")}
    assert {name: row["reason"] for name, row in dropped.items()} == {
        "exact": "duplicate",
        "near": "near_duplicate",
        "near-too": "near_duplicate",
        "traditional": "duplicate",
    }
    assert dropped["near"]["equals"] == dropped["near-too"]["equals"] == "first/0/5"


def test_what_is_said_of_a_document_comes_along(recipe):
    kept = {row["id"]: row for row in rows(recipe / "run" / "corpus", "train")}
    assert (kept["second-3"]["licence"], kept["second-3"]["category"]) == ("CC0", "story")
    assert (kept["first-3"]["licence"], kept["first-3"]["category"]) == (None, "web")
    assert kept["second-3"]["place"] == "second/0/3"


def test_why_shows_the_cluster(recipe):
    def why(name: str) -> dict:
        result = CliRunner().invoke(cli, ["corpus", "why", str(recipe / "run"), name, "--json"], catch_exceptions=False)
        (found,) = json.loads(result.stdout)
        return found

    near = why("near")
    assert (near["stage"], near["equals"]["id"]) == ("near duplicates", "first-5")
    assert near["similarity"]["hamming"] <= 18
    assert 0.65 < near["similarity"]["shared"] < 1
    assert near["duplicates"] == [{"source": "second", "id": "near-too", "reason": "near_duplicate"}]
    kept = why("first-5")
    assert kept["outcome"] == "kept"
    assert [row["id"] for row in kept["duplicates"]] == ["near", "near-too"]
    shown = CliRunner().invoke(cli, ["corpus", "why", str(recipe / "run"), "near"]).stdout
    assert "is nearly first-5 (first)" in shown
    assert "of 64 bits" in shown


def test_a_later_corpus_leaves_out_what_an_earlier_one_has(recipe, tmp_path):
    later = [{"id": f"new-{n}", "text": story(200 + n)} for n in range(30)]
    later += [
        {"id": "old", "text": story(4)},
        {"id": "nearly-old", "text": edited(story(9), 0.01, 3)},
        {"id": "like-a-dropped-one", "text": edited(story(5), 0.01, 7)},
        {"id": "like-validation", "text": story(501)},
        {"id": "new-again", "text": story(200)},
    ]
    index = recipe / "run" / "corpus" / "index"
    source = Source(name="later", paths=[write(tmp_path / "later.jsonl", later)], weight=1.0)
    settings = Corpus(sources=[source], index=str(index), keep_index=True, holdout=0)
    (recipe / "first.jsonl").rename(recipe / "first.gone")  # the index alone is needed
    try:
        build(settings, tmp_path / "corpus")
    finally:
        (recipe / "first.gone").rename(recipe / "first.jsonl")
    dropped = {row["id"]: (row["reason"], row["equals"]) for row in rows(tmp_path / "corpus", "dropped")}
    assert dropped == {
        "old": ("duplicate", "corpus.index/0/8"),  # four validation documents come first
        "nearly-old": ("near_duplicate", "corpus.index/0/13"),
        "like-a-dropped-one": ("near_duplicate", "corpus.index/0/9"),
        "like-validation": ("duplicate", "corpus.index/0/1"),
        "new-again": ("duplicate", "later/0/0"),
    }
    assert len(rows(tmp_path / "corpus", "train")) == 30

    third = Source(
        name="third", paths=[write(tmp_path / "third.jsonl", [later[0], {"text": story(6)}, {"text": story(900)}])]
    )
    settings = Corpus(sources=[third], index=str(tmp_path / "corpus" / "index"), holdout=0)
    assert build(settings, tmp_path / "third")["total"]["dropped"]["duplicate"]["documents"] == 2  # of both before it


def test_an_index_that_is_none(recipe, tmp_path):
    source = Source(name="s", paths=[write(tmp_path / "s.jsonl", [{"text": story(1)}])], weight=1.0)
    with pytest.raises(UserError, match=r"corpus\.index: .* holds no index of a corpus; name the folder corpus/index"):
        build(Corpus(sources=[source], index=str(tmp_path)), tmp_path / "none")
    changed = NearDuplicates(distance=3)
    with pytest.raises(UserError, match="was made with other settings"):
        index = str(recipe / "run" / "corpus" / "index")
        build(Corpus(sources=[source], index=index, near_duplicates=changed), tmp_path / "other")
    build(
        Corpus(sources=[source], keep_index=True, holdout=0, near_duplicates=NearDuplicates(mode="off")),
        tmp_path / "exact",
    )
    with pytest.raises(UserError, match="was made without near duplicates"):
        build(Corpus(sources=[source], index=str(tmp_path / "exact" / "index")), tmp_path / "both")


# ── Benchmarks, lines, quality ───────────────────────────────────────────────────────────────────────────────────────

QUESTION = "Which instrument did the old keeper of the northern lighthouse play on quiet winter evenings after supper?"
CHINESE_QUESTION = "北方灯塔的老守塔人在安静的冬夜里吃过晚饭之后会演奏哪一种古老的乐器来消磨漫长的时间呢"


@pytest.mark.parametrize("contaminated", ["drop_document", "drop_span"])
def test_benchmarks_are_kept_out_and_reported(tmp_path, contaminated, capsys):
    items = [{"question": QUESTION, "answer": "the violin"}, {"question": CHINESE_QUESTION, "answer": "二胡"}]
    write(tmp_path / "benchmarks" / "quiz" / "test.jsonl", items)
    write(tmp_path / "benchmarks" / "never" / "test.jsonl", [{"question": story(77, 2)}])
    texts = [story(n) for n in range(20)]
    texts[3] = f"{story(30)} {QUESTION} {story(31)}"
    texts[8] = f"{story(32)} {QUESTION.upper()} {story(33)}"
    texts[9] = f"{story(34)}\n{CHINESE_QUESTION}\n{story(35)}"
    source = Source(name="s", paths=[write(tmp_path / "s.jsonl", [{"text": text} for text in texts])], weight=1.0)
    settings = Corpus(sources=[source], benchmarks=[str(tmp_path / "benchmarks")], contaminated=contaminated, holdout=0)
    funnel = build(settings, tmp_path / "corpus")
    quiz = funnel["decontamination"]["quiz"]
    assert (quiz["items"], quiz["found"], quiz["documents"]) == (2, 2, 3)
    assert funnel["decontamination"]["never"]["found"] == 0
    assert "decontamination met none of the 1 items of never" in capsys.readouterr().err
    kept = rows(tmp_path / "corpus", "train")
    folded = " ".join(row["text"].lower() for row in kept)
    assert "the northern lighthouse play" not in folded
    assert CHINESE_QUESTION[5:30] not in folded
    cut = funnel["total"]["cut"]
    if contaminated == "drop_document":
        assert (len(kept), cut["documents"]) == (17, 0)
    else:
        assert (len(kept), cut["documents"]) == (20, 3)
        assert cut["bytes"] == sum(len(text.encode()) for text in texts) - sum(
            len(row["text"].encode()) for row in kept
        )


def test_lines_that_stand_in_many_documents_go(tmp_path):
    notice = "This page was saved by the society of friends of the old lighthouse in the north."
    texts = [f"{story(n, 5)}\n{notice}\n{story(1000 + n, 5)}" if n % 2 else story(n) for n in range(60)]
    source = Source(name="s", paths=[write(tmp_path / "s.jsonl", [{"text": text} for text in texts])], weight=1.0)
    funnel = build(Corpus(sources=[source], holdout=0), tmp_path / "corpus")
    assert funnel["total"]["cut"] == {"documents": 30, "bytes": 30 * (len(notice) + 1)}
    assert [row["text"] for row in rows(tmp_path / "corpus", "train")] == [
        text.replace(f"{notice}\n", "") for text in texts
    ]
    whole = Corpus(sources=[source], holdout=0, filters=Filters(lines=LineFilters(max_document_share=1.0)))
    assert build(whole, tmp_path / "whole")["total"]["cut"]["documents"] == 0


def test_text_unlike_the_reference_is_dropped(tmp_path):
    good = [{"text": story(n)} for n in range(200)]
    draw = random.Random(0)
    odd = ["".join(draw.choice("bcdfghjkl") for _ in range(5)) for _ in range(400)]
    noise = [{"id": f"odd-{n}", "text": " ".join(draw.choice(odd) for _ in range(90)) + "."} for n in range(10)]
    text = [{"id": f"good-{n}", "text": story(5000 + n)} for n in range(190)]
    reference = Source(name="good", paths=[write(tmp_path / "good.jsonl", good)], language="en")
    source = Source(name="s", paths=[write(tmp_path / "s.jsonl", text + noise)], language="en", weight=1.0)
    settings = Corpus(sources=[source], quality=Quality(reference=[reference]), holdout=0)
    funnel = build(settings, tmp_path / "corpus")
    dropped = rows(tmp_path / "corpus", "dropped")
    assert Counter(row["reason"] for row in dropped) == {"perplexity": 10}
    assert {row["id"] for row in dropped} == {row["id"] for row in noise}
    kept = rows(tmp_path / "corpus", "train")
    assert max(row["perplexity"] for row in kept) < min(row["perplexity"] for row in dropped)
    assert funnel["total"]["kept"]["documents"] == 190
    noted = Corpus(sources=[source], quality=Quality(reference=[reference], keep="all"), holdout=0)
    build(noted, tmp_path / "noted")
    assert all(row["perplexity"] > 1 for row in rows(tmp_path / "noted", "train"))


def test_a_language_that_a_record_states_comes_first(tmp_path):
    records = [{"text": story(n), "lang": "en-GB"} for n in range(5)] + [{"text": story(9), "lang": "zh"}]
    source = Source(name="s", paths=[write(tmp_path / "s.jsonl", records)], weight=1.0)
    source.fields.language = "lang"
    funnel = build(Corpus(sources=[source], holdout=0), tmp_path / "corpus")
    assert funnel["total"]["dropped"] == {"wrong_language": {"documents": 1, "bytes": len(story(9))}}


def test_the_funnel_sums_up_or_says_so():
    counts = Counts()
    counts.read += (2, 10)
    with pytest.raises(AssertionError, match="does not sum up"):
        counts.describe()


def test_an_index_that_nobody_would_look_at(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "name: x\ncorpus:\n  deduplicate: false\n  index: old\n  sources: [{name: s, paths: [s.jsonl], weight: 1}]\n"
        "model: {preset: nano}\n"
    )
    with pytest.raises(UserError, match=r"corpus\.index: is only looked at when duplicates are"):
        load_recipe(tmp_path / "recipe.yaml")


def test_paths_start_from_the_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "name: x\ncorpus:\n  index: old\n  sources: [{name: s, paths: [s.jsonl], weight: 1}]\n"
        "tokenizer: {path: mine.model}\nmodel: {preset: nano}\n"
    )
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert (recipe.corpus.index, recipe.tokenizer.path) == (str(tmp_path / "old"), str(tmp_path / "mine.model"))
    (tmp_path / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text().replace("mine.model", "Qwen/Q@main"))
    assert load_recipe(tmp_path / "recipe.yaml").tokenizer.path == "Qwen/Q@main"


def test_a_sample_of_fewer_documents_than_places(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SHARD_BYTES", 3000)
    paths = [write(tmp_path / "s.jsonl", [{"text": story(n)} for n in range(60)])]
    reference = Source(name="good", paths=paths, language="en")
    source = Source(name="s", paths=paths, language="en", weight=1.0)
    quality = Quality(reference=[reference], sample_documents=3)
    with pytest.raises(UserError, match="3 en documents are too few to take a quantile of"):
        build(Corpus(sources=[source], quality=quality, holdout=0), tmp_path / "corpus")

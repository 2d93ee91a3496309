"""The quality filter: dirt surprises the model, thresholds are what they say, the stage is a pure function."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from xmodel.corpus.batches import raw_batch, with_column
from xmodel.corpus.filters import filtering
from xmodel.corpus.folding import folding
from xmodel.corpus.furniture import FURNITURE
from xmodel.corpus.kneser_ney.model import document_sums, load_model, score
from xmodel.corpus.quality import paragraph_perplexities, prepare, quality_stage
from xmodel.corpus.sources import read
from xmodel.errors import MachineError, UserError
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Filters, Quality, Source

SHARED = next((parent / "shared" for parent in Path(__file__).parents if (parent / "shared").is_dir()), None)
SANDBOX = [
    Source(name="reference-en", reader="sandbox", paths=["en"], documents=500, language="en"),
    Source(name="reference-zh", reader="sandbox", paths=["zh"], documents=500, language="zh"),
]
SETTINGS = Quality(reference=SANDBOX, order=3, memory=1 << 24)


def described(texts: list[str], language: str) -> pa.RecordBatch:
    batch = raw_batch([str(number) for number in range(len(texts))], texts)
    return with_column(batch, "language", pa.repeat(language, len(texts)))


def sandbox(documents: int, dirt: float, seed: int) -> Iterator[pa.RecordBatch]:
    """Documents of the sandbox as they stand before the stage, but without any reason yet."""
    source = Source(name="raw", reader="sandbox", paths=["en", "zh"], documents=documents)
    for batch in read(source, "corpus.sources[0]", seed=seed, dirt=dirt):
        batch = filtering(folding(batch), Filters(), "auto")
        yield with_column(batch, "reason", pa.nulls(len(batch), pa.string()))


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(np.median(found)) for name, found in values.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("quality")
    prepare(SETTINGS, sandbox(800, 0.0, seed=5), path, seed=1)
    return path


def test_labelled_dirt_surprises_more_than_clean_text(folder):
    stage = quality_stage(SETTINGS, folder)
    found: dict[str, dict[str, list[float]]] = {"en": {}, "zh": {}}
    dropped: dict[str, list[bool]] = {}
    for batch in map(stage, sandbox(1500, 0.4, seed=3)):
        for language, label, value, reason in zip(
            *(batch[name].to_pylist() for name in ("language", "label", "perplexity", "reason")), strict=True
        ):
            found[language].setdefault(label or "clean", []).append(value)
            dropped.setdefault(label or "clean", []).append(reason == "perplexity")
    for language, values in found.items():
        clean = np.quantile(values["clean"], 0.9)
        for label in {"boilerplate", "mojibake", "symbol_soup", "list_without_sentences"} & values.keys():
            assert np.quantile(values[label], 0.2) > clean, (language, label)
    assert np.mean(dropped["clean"]) < 0.12  # 0.05 of the sample, by definition of the tail
    for label in ("boilerplate", "mojibake", "symbol_soup"):
        assert np.mean(dropped[label]) > 0.9, label


@pytest.mark.parametrize(("language", "files"), [("en", ["en-peps"]), ("zh", ["zh-modern"])])
def test_real_text_is_told_from_what_is_made_of_its_words(language, files, tmp_path):
    if SHARED is None:
        pytest.skip("no ../shared/text")
    texts = [
        json.loads(line)["text"][:4_000]
        for name in files
        for line in gzip.open(SHARED / "text" / f"{name}.jsonl.gz", "rt", encoding="utf-8")
    ][:500]
    (tmp_path / "good.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[1::2]))
    reference = Source(name="good", paths=[str(tmp_path / "good.jsonl")], language=language)
    settings = Quality(reference=[reference], order=3, memory=1 << 24)
    clean = texts[::2]
    prepare(settings, [described(clean, language)], tmp_path / "model", seed=0)
    stage = quality_stage(settings, tmp_path / "model")
    shuffle = random.Random(0)
    kept = [phrase for phrase in FURNITURE if phrase.isascii() == (language == "en")]

    def shuffled(text: str) -> str:
        units = text.split() if language == "en" else list(text)
        shuffle.shuffle(units)
        return (" " if language == "en" else "").join(units)

    def values(texts: list[str]) -> np.ndarray:
        return stage(described(texts, language))["perplexity"].to_numpy(zero_copy_only=False)

    clean_D = values(clean)
    assert (values([shuffled(text) for text in clean]) > 1.5 * clean_D).mean() > 0.99
    assert np.median(values([" ".join(shuffle.sample(kept, 20)) for _ in range(50)])) > 5 * np.quantile(clean_D, 0.9)
    assert stage(described(clean, language))["reason"].is_valid().to_numpy(zero_copy_only=False).mean() < 0.06


def test_the_stage_is_a_pure_function_of_each_document(folder):
    stage, again = quality_stage(SETTINGS, folder), quality_stage(SETTINGS, folder)
    for batch in sandbox(300, 0.4, seed=8):
        whole = stage(batch)
        assert whole.schema.names == [*batch.schema.names, "perplexity"]
        assert whole["perplexity"].type == pa.float32()
        parts = [again(batch.slice(begin, 7)) for begin in range(0, len(batch), 7)]
        assert pa.Table.from_batches(parts).equals(pa.Table.from_batches([whole]))
        assert whole.drop_columns(["perplexity", "reason"]).equals(batch.drop_columns(["reason"]))


def test_preparing_twice_gives_the_same_bytes(folder, tmp_path):
    prepare(replace(SETTINGS, memory=1_000_000), sandbox(800, 0.0, seed=5), tmp_path, seed=1)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(names) == 13
    for name in names:
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_head_middle_all_and_value(folder, tmp_path):
    documents = pa.Table.from_batches(list(sandbox(800, 0.0, seed=5))).combine_chunks().to_batches()[0]

    def kept(settings: Quality, path: Path = folder) -> float:
        return quality_stage(settings, path)(documents)["reason"].null_count / len(documents)

    assert kept(SETTINGS) == pytest.approx(SETTINGS.tail, abs=0.01)
    assert kept(replace(SETTINGS, keep="head")) == pytest.approx(SETTINGS.head, abs=0.01)
    assert kept(replace(SETTINGS, keep="all")) == 1
    by_value = replace(SETTINGS, max_perplexity_en=1e9, max_perplexity_zh=1.0)
    prepare(by_value, iter(()), tmp_path, seed=1)  # no sample is needed
    reasons = quality_stage(by_value, tmp_path)(documents)
    assert {(row["language"], row["reason"]) for row in reasons.to_pylist()} == {("en", None), ("zh", "perplexity")}


def test_a_document_may_be_dropped_for_its_paragraphs(folder):
    model = load_model(folder / "en")
    batch = next(sandbox(300, 0.0, seed=9))
    batch = batch.filter(pa.array([language == "en" for language in batch["language"].to_pylist()]))
    tail = json.loads((folder / "quality.json").read_text())["en"]["tail"]
    perplexity_L, ends_D1 = paragraph_perplexities(batch["text"], model)
    assert np.diff(ends_D1).tolist() == [
        sum(bool(line.strip()) for line in text.split("\n")) for text in batch["text"].to_pylist()
    ]
    units_L = score(batch["text"], model).units_L
    share_D = document_sums(units_L * (perplexity_L > tail), ends_D1) / document_sums(units_L, ends_D1)
    limit = float(np.median(share_D))
    result = quality_stage(replace(SETTINGS, max_bad_paragraphs=limit), folder)(batch)
    too_high_D = result["perplexity"].to_numpy() > tail
    assert ((share_D > limit) & ~too_high_D).any()  # so the rule decides about some of them alone
    assert result["reason"].is_valid().to_pylist() == ((share_D > limit) | too_high_D).tolist()


def test_what_is_not_scored(folder):
    batch = described(["The cat sat on the mat.", "", " \n", "The cat sat on the mat."], "en")
    batch = with_column(batch, "reason", pa.array([None, None, None, "too_short"], pa.string()))
    result = quality_stage(SETTINGS, folder)(batch)
    assert [value is None for value in result["perplexity"].to_pylist()] == [False, True, True, True]
    assert result["reason"].to_pylist()[1:] == [None, None, "too_short"]
    only_chinese = replace(SETTINGS, reference=SANDBOX[1:])
    with pytest.raises(MachineError, match="has models for en, zh, not zh"):
        quality_stage(only_chinese, folder)
    off = quality_stage(Quality(), folder / "nowhere")(batch)
    assert off["perplexity"].null_count == 4
    assert len(quality_stage(SETTINGS, folder)(batch.slice(0, 0))) == 0


def test_too_small_a_sample_or_no_reference_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"0 en documents are too few .* max_perplexity_en"):
        prepare(replace(SETTINGS, reference=SANDBOX[:1]), [], tmp_path, seed=1)
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    empty = Source(name="empty", paths=[str(tmp_path / "empty.jsonl")], language="zh")
    with pytest.raises(UserError, match="holds no words"):
        prepare(Quality(reference=[empty]), [], tmp_path, seed=1)


RECIPE = """
corpus:
  sources: [{{name: a, reader: sandbox, paths: [en], weight: 1}}]
  quality: {quality}
model: {{preset: nano}}
"""


@pytest.mark.parametrize(
    ("quality", "message"),
    [
        ("{reference: [{name: r, paths: [x.jsonl]}]}", "is auto; a model is of one language"),
        ("{reference: [{name: r, language: en}]}", "needs files, folders or patterns"),
        ("{prune: [1]}", "begins with 0"),
        ("{order: 2, prune: [0, 0, 1]}", "at most as many numbers as the order"),
        ("{head: 0.9, tail: 0.5}", "is larger than tail"),
    ],
)
def test_settings_that_cannot_be_right(quality, message, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.format(quality=quality))
    with pytest.raises(UserError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_reference_paths_start_from_the_recipe(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.format(quality="{reference: [{name: r, language: en, paths: [x.jsonl]}]}"))
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.corpus.quality.reference[0].paths == [str(tmp_path / "x.jsonl")]

"""Held-out loss against the plain definition, and its errors against simulation."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import slow_logprobs, texts

from xmodel.errors import UserError
from xmodel.evaluate.choices import ratio_and_error
from xmodel.evaluate.perplexity import perplexity
from xmodel.evaluate.texts import spread_rows


def write(folder: Path, language: str, documents: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    columns = {"id": [f"{language}/{n}" for n in range(len(documents))], "text": documents}
    pq.write_table(pa.table(columns), folder / f"{language}.parquet", row_group_size=37)


@pytest.mark.parametrize("bos", [True, False])
def test_equals_the_definition(model, tokenizer, tmp_path: Path, bos: bool) -> None:
    documents = [texts()[n] for n in (0, 30, 60, 95, 120)]
    write(tmp_path / "v", "en", documents)
    result = perplexity(model, tokenizer, tmp_path / "v", bos, limit=10**9)

    stream = [tokenizer.eos_id]
    for text in documents:
        stream += [tokenizer.bos_id] * bos + tokenizer.encode(text) + [tokenizer.eos_id]
    width = model.config.context_length
    assert len(stream) > 2 * width
    nats = np.concatenate(
        [-slow_logprobs(model, stream[at : at + width + 1]).numpy() for at in range(0, len(stream) - 1, width)]
    )
    rows = {row["metric"]: row for row in result["results"]}
    size = sum(len(text.encode()) for text in documents)
    assert rows["loss"]["value"] == pytest.approx(nats.mean(), rel=1e-5)
    assert rows["perplexity"]["value"] == pytest.approx(math.exp(nats.mean()), rel=1e-4)
    assert rows["bits_per_byte"]["value"] == pytest.approx(nats.sum() / math.log(2) / size, rel=1e-5)
    assert all((row["tokens"], row["bytes"]) == (len(stream) - 1, size) for row in rows.values())
    assert rows["perplexity"]["stderr"] == pytest.approx(rows["perplexity"]["value"] * rows["loss"]["stderr"])

    ends = np.cumsum([item["tokens"] for item in result["items"]])
    for item, part in zip(result["items"], np.split(nats, ends[:-1]), strict=True):
        assert item["nats"] == pytest.approx(part.sum(), abs=1e-2)


def test_documents_apart(model, tokenizer, tmp_path: Path) -> None:
    """As a model with a document mask was trained: every window's part of a document by itself, no loss for `<s>`."""
    documents = [texts()[n] for n in (0, 30, 60, 95, 120)]
    write(tmp_path / "v", "en", documents)
    result = perplexity(model, tokenizer, tmp_path / "v", True, limit=10**9, document_mask=True)
    ids = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in documents]
    width, at = model.config.context_length, 1
    for item, document in zip(result["items"], ids, strict=True):
        cuts = [0, *(place for place in range(1, len(document)) if (at + place) % width == 0), len(document)]
        parts = [document[start : end + 1] for start, end in pairwise(cuts)]
        nats = sum(-slow_logprobs(model, part).sum().item() for part in parts if len(part) > 1)
        assert item["nats"] == pytest.approx(nats, abs=2e-2)
        assert item["tokens"] == len(document) - 1
        at += len(document)


def test_whole_documents_up_to_the_limit_in_each_language(model, tokenizer, tmp_path: Path) -> None:
    for language, documents in (("en", texts()[:9]), ("zh", texts()[95:104])):
        write(tmp_path / "v", language, documents)
    lengths = [len(tokenizer.encode(text)) + 2 for text in texts()[:9]]
    result = perplexity(model, tokenizer, tmp_path / "v", True, limit=sum(lengths[:3]) + 1)
    english = [row for row in result["results"] if row["language"] == "en"]
    scored = [int(item["id"].split("/")[-1]) for item in result["items"] if item["language"] == "en"]
    assert english[0]["tokens"] == sum(lengths[index] for index in scored) > sum(lengths[:3])
    assert scored == sorted(scored)
    assert {row["language"] for row in result["results"]} == {"en", "zh"}


@pytest.mark.parametrize("rows", [1, 2, 3, 10, 400])
def test_any_number_of_documents_is_spread_evenly_over_the_file(rows: int, tmp_path: Path) -> None:
    write(tmp_path, "en", [f"text {row}" for row in range(rows)])
    with pq.ParquetFile(tmp_path / "en.parquet") as file:
        found = list(spread_rows(file, ["text"], block=7))
    assert sorted(row for row, _ in found) == list(range(rows))
    assert all(record == {"text": f"text {row}"} for row, record in found)
    first = sorted(row for row, _ in found[:20])
    assert max(np.diff([-1, *first, rows]), default=1) <= max(2, rows // 20 * 3)


def test_a_single_document_has_no_error(model, tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "v", "zh", texts()[95:96])
    assert [row["stderr"] for row in perplexity(model, tokenizer, tmp_path / "v", True, 100)["results"]] == [None] * 3


def test_no_text(model, tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no held-out text"):
        perplexity(model, tokenizer, tmp_path / "v", True, 100)
    write(tmp_path / "v", "en", [])
    with pytest.raises(UserError, match="is empty"):
        perplexity(model, tokenizer, tmp_path / "v", True, 100)


def test_error_of_a_ratio_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    ratios, errors = [], []
    for _ in range(2000):
        weights = rng.integers(20, 400, 60).astype(float)
        ratio, error = ratio_and_error(weights * rng.normal(2.0, 0.4, 60), weights)
        ratios.append(ratio)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.05)

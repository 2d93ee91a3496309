"""Held-out loss against the plain definition, and its errors against simulation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, count, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import slow_logprobs, texts

from xmodel.errors import UserError
from xmodel.evaluate.choices import ratio_and_error
from xmodel.evaluate.perplexity import (
    Encoded,
    encode_texts,
    perplexity,
    perplexity_table,
    score_documents,
    windows,
)
from xmodel.evaluate.texts import Text, spread_rows
from xmodel.model.checkpoint_io import save_model


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


# ── Any text, any window ─────────────────────────────────────────────────────────────────────────────────────────────


def encoded(tokenizer, documents: list[str], language: str = "en") -> list[Encoded]:
    return [
        Encoded(f"d{n}", language, f"s{n % 2}", (0, n), np.array(tokenizer.encode(text)), len(text.encode()))
        for n, text in enumerate(documents)
    ]


def sliding(model, ids: list[int], window: int, stride: int) -> np.ndarray:
    """The loop of transformers' guide to the perplexity of fixed-length models, max_length = window + 1."""
    nats, scored = [], 1
    for begin in range(0, len(ids), stride):
        end = min(begin + window + 1, len(ids))
        new = end - scored
        if new > 0:
            nats.append(-slow_logprobs(model, ids[begin:end]).numpy()[-new:])
        scored = end
        if end == len(ids):
            break
    return np.concatenate(nats)


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 16), (48, 20), (64, 1), (7, 3), (1, 1)])
@pytest.mark.parametrize("layout", ["apart", "stream"])
def test_windows_equal_the_plain_loop(model, tokenizer, layout: str, window: int, stride: int) -> None:
    documents = [texts()[n] for n in (0, 30, 60)] + [" ".join(texts()[3:6])]
    result = score_documents(
        model, tokenizer, True, encoded(tokenizer, documents), layout=layout, window=window, stride=stride
    )
    ids = [tokenizer.encode(text) for text in documents]
    if layout == "apart":
        parts = [sliding(model, [tokenizer.bos_id, *document], window, stride) for document in ids]
    else:
        whole = [[tokenizer.bos_id, *document, tokenizer.eos_id] for document in ids]
        nats = sliding(model, [tokenizer.eos_id, *chain(*whole)], window, stride)
        parts = np.split(nats, np.cumsum([len(document) for document in whole])[:-1])
    assert [item["tokens"] for item in result["items"]] == [len(part) for part in parts]
    for item, part in zip(result["items"], parts, strict=True):
        assert item["nats"] == pytest.approx(part.sum(), abs=2e-3)
    assert result["settings"]["window"] == window
    assert result["settings"]["stride"] == stride


def test_equals_transformers_on_an_exported_model(model, tokenizer, tmp_path: Path) -> None:
    """Its own labels, its own loss: -100 for the context, the mean over the rest."""
    transformers = pytest.importorskip("transformers")
    save_model(model, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    text, window, stride = " ".join(texts()[:6]), 40, 13
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(text)]])
    total, scored, previous = 0.0, 0, 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window + 1, ids.shape[1])
        labels = ids[:, begin:end].clone()
        labels[:, : -(end - previous)] = -100
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(theirs(ids[:, begin:end], labels=labels).loss) * count
        scored, previous = scored + count, end
        if end == ids.shape[1]:
            break
    result = score_documents(
        model, tokenizer, True, encoded(tokenizer, [text]), layout="apart", window=window, stride=stride
    )
    row = result["results"][0]
    assert row["tokens"] == scored == ids.shape[1] - 1
    assert row["value"] == pytest.approx(total / scored, rel=1e-5)
    assert row["stderr"] is None


@given(st.integers(1, 200), st.integers(1, 40), st.data())
@settings(max_examples=200, deadline=None)
def test_windows_score_every_token_once(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    found = list(windows(length, window, stride))
    assert [place for _, scored, end in found for place in range(scored, end)] == list(range(length))
    assert all(begin <= scored < end <= begin + window for begin, scored, end in found)
    assert all(end - begin == window for begin, _, end in found[:-1])
    assert all(end - scored == stride for _, scored, end in found[1:-1])


def test_a_smaller_stride_scores_the_same_tokens_from_more_context(model, tokenizer) -> None:
    documents = encoded(tokenizer, [" ".join(texts()[:8])])
    losses = [
        score_documents(model, tokenizer, True, documents, layout="apart", window=32, stride=stride)["results"][0]
        for stride in (32, 1)
    ]
    assert losses[0]["tokens"] == losses[1]["tokens"]
    assert losses[0]["value"] != losses[1]["value"]


def test_order_and_batches_do_not_matter_where_documents_stand_apart(model, tokenizer, monkeypatch) -> None:
    documents = encoded(tokenizer, texts()[:40])
    first = score_documents(model, tokenizer, True, documents, layout="apart")["items"]
    monkeypatch.setattr("xmodel.evaluate.perplexity.BUDGET", 100)
    again = score_documents(model, tokenizer, True, documents[::-1], layout="apart")["items"]
    for one, other in zip(first, again[::-1], strict=True):
        assert one["id"] == other["id"]
        assert one["nats"] == pytest.approx(other["nats"], abs=2e-3)


def test_languages_sources_and_their_sums(model, tokenizer) -> None:
    documents = encoded(tokenizer, texts()[:9]) + encoded(tokenizer, texts()[95:99], "zh")
    result = score_documents(model, tokenizer, True, documents, layout="apart")
    rows = {(row["language"], row.get("source"), row["metric"]): row for row in result["results"]}
    assert {key[:2] for key in rows} == {(code, part) for code in ("en", "zh") for part in (None, "s0", "s1")}
    for code in ("en", "zh"):
        whole, *parts = (rows[code, part, "bits_per_byte"] for part in (None, "s0", "s1"))
        assert whole["bytes"] == sum(part["bytes"] for part in parts)
        assert whole["value"] * whole["bytes"] == pytest.approx(sum(part["value"] * part["bytes"] for part in parts))
        assert all(part["stderr"] > 0 for part in parts)
    shown = perplexity_table(result).splitlines()
    assert len(shown) == 2 + 6 + 1
    assert "window 64, stride 64" in shown[-1]


def test_reading_stops_when_every_language_has_enough(tokenizer) -> None:
    def endless() -> Iterator[Text]:
        for n in count():
            yield Text(
                f"{n}", "Mira went to Oslo." if n % 3 else "小林去了北京。", "zh" if n % 3 == 0 else "en", "", (0, n)
            )

    found = encode_texts(endless(), tokenizer, limit=100)
    for code in ("en", "zh"):
        sizes = [len(document.ids) for document in found if document.language == code]
        assert sum(sizes[:-1]) < 100 <= sum(sizes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 65}, "--window 65: it has to lie between 1 and the model's context of 64"),
        ({"stride": 65}, "--stride 65: it has to lie between 1 and the window of 64"),
        ({"window": 8, "stride": 9}, "the window of 8"),
        ({"layout": "masked", "stride": 8}, "--stride equal to --window"),
    ],
)
def test_windows_out_of_range(model, tokenizer, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_documents(model, tokenizer, True, encoded(tokenizer, ["a"]), **{"layout": "apart"} | arguments)


@pytest.mark.parametrize("layout", ["apart", "stream"])
def test_a_model_of_another_family_goes_the_same_way(tokenizer, layout: str) -> None:
    """Learned positions, another attention: windows over transformers' own logits."""
    transformers = pytest.importorskip("transformers")
    from xmodel.inference.hf_model import HfModel

    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "initializer_range": 0.3}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=tokenizer.vocab_size, **shape)).eval()
    documents = encoded(tokenizer, [" ".join(texts()[:3]), texts()[100]])
    result = score_documents(HfModel(theirs, 48), tokenizer, False, documents, layout=layout, window=40, stride=15)
    ids = [[tokenizer.eos_id, *document.ids.tolist()] for document in documents]
    sequences = ids if layout == "apart" else [[*chain(*ids), tokenizer.eos_id]]
    nats = []
    for sequence in sequences:
        for begin, scored, end in windows(len(sequence) - 1, 40, 15):
            with torch.no_grad():
                logits = theirs(torch.tensor([sequence[begin:end]])).logits[0].double().log_softmax(-1)
            nats += [-logits[place - begin, sequence[place + 1]].item() for place in range(scored, end)]
    assert sum(item["tokens"] for item in result["items"]) == len(nats)
    assert sum(item["nats"] for item in result["items"]) == pytest.approx(sum(nats), rel=1e-4)

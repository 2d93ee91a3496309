"""Loss on text, in units that can be compared: per token, and per UTF-8 byte for other tokenizers.

Text is read in windows. The first scores all its tokens; each further one begins `stride` tokens later and scores only
the tokens that no window before it has scored, the rest is their context. With stride = window, training's layout,
windows do not overlap; a smaller stride gives every token a longer context and costs window / stride times as much.
(`max_length` of the guide "Perplexity of fixed-length models" in transformers' documentation counts the last target
too: it is window + 1.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from xmodel.console import progress, table
from xmodel.errors import UserError
from xmodel.evaluate.choices import ratio_and_error
from xmodel.evaluate.scorer import BUDGET, target_logprobs
from xmodel.evaluate.texts import Text, read_texts
from xmodel.model.documents import document_starts
from xmodel.model.transformer import Transformer

Documents = Literal["apart", "stream", "masked"]
# What is scored of which context; stands beside every figure.
LAYOUTS: dict[Documents, str] = {
    "apart": "every document by itself behind <s> (or </s>); its text is scored",
    "stream": "documents one behind another; text, <s> and </s> are scored",
    "masked": "documents one behind another that do not see each other; text and </s> are scored",
}


class Encoded(NamedTuple):
    """A document as it is scored."""

    id: str
    language: str
    source: str
    place: tuple[int, int]
    ids: np.ndarray  # without control tokens
    bytes: int  # of the text in UTF-8


def perplexity(
    model: Any, tokenizer: Any, folder: Path, bos: bool, limit: int, document_mask: bool = False
) -> dict[str, Any]:
    """Loss, perplexity and bits per byte of the held-out text in `folder`/{en,zh,...}.parquet, a language apart.

    Text is laid out as in training: documents, each `[<s>] text </s>`, one behind another, cut into windows of the
    model's context length that do not overlap. Every token is predicted once, the first from a `</s>`; with
    `document_mask` (as the model was trained) documents do not see each other, and their `<s>` is not predicted.

    Args:
        limit: whole documents, spread evenly over the file, are read until they have this many tokens in each language.

    Returns:
        results: three rows a language, see `ratio_rows`. items: per document its id, nats, tokens and bytes.

    Raises:
        UserError: no held-out text.
    """
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise UserError(f"{folder}: no held-out text (*.parquet); corpus.holdout sets some aside")
    files = [(path, path.stem) for path in paths]
    texts = (text._replace(language=files[text.place[0]][1]) for text in read_texts(files, spread=True))
    documents = encode_texts(texts, tokenizer, limit, controls=1 + bos, languages=len(files))
    if not documents:
        raise UserError(f"{folder}: the held-out text is empty; a larger corpus.holdout sets more aside")
    layout: Documents = "masked" if document_mask else "stream"
    return score_documents(model, tokenizer, bos, documents, layout=layout, name="validation", by_source=False)


def score_documents(
    model: Any,
    tokenizer: Any,
    bos: bool,
    documents: Sequence[Encoded],
    *,
    layout: Documents,
    window: int = 0,
    stride: int = 0,
    name: str = "text",
    by_source: bool = True,
) -> dict[str, Any]:
    """Loss, perplexity and bits per byte of documents, a language apart, and each of its sources.

    Standard errors are those of a ratio of sums over documents (nats over tokens, bits over bytes), by the delta
    method: tokens of a document are not independent, documents nearly are.

    Args:
        layout: see `LAYOUTS`. "masked" needs a model of ours and windows that do not overlap.
        window: tokens that the model reads at once; 0: its context length.
        stride: see the module; 0: the window.
        name: the rows' `set`.

    Returns:
        results: rows of `ratio_rows`. items: per document its id, language, source, nats, tokens and bytes.
        settings: window, stride and layout.

    Raises:
        UserError: a window or stride out of range, or losses that are not finite.
    """
    context = model.config.context_length
    window = window or context
    stride = stride or window
    if not 1 <= window <= context:
        raise UserError(f"--window {window}: it has to lie between 1 and the model's context of {context} tokens")
    if not 1 <= stride <= window:
        raise UserError(f"--stride {stride}: it has to lie between 1 and the window of {window} tokens")
    if layout == "masked" and not isinstance(model, Transformer):
        raise UserError("documents that do not see each other need a model of ours; --documents apart does without")
    if layout == "masked" and stride < window:
        raise UserError("documents that do not see each other are scored as in training: --stride equal to --window")
    rows, items = [], []
    for language in sorted({document.language for document in documents}):
        started = time.monotonic()
        own = [document for document in documents if document.language == language]
        total = sum(len(document.ids) for document in own)
        with progress(f"evaluate perplexity ({language})", total, "tokens") as shown:
            nats, tokens = document_nats(
                model, tokenizer, bos, [document.ids for document in own], layout, window, stride, shown.advance
            )
        sizes = np.array([document.bytes for document in own], np.int64)
        seconds = time.monotonic() - started
        rows += ratio_rows(name, language, nats, tokens, sizes, seconds)
        sources = sorted({document.source for document in own}) if by_source else []
        for source in sources if len(sources) > 1 else ():
            of_source = np.array([document.source == source for document in own])
            part = ratio_rows(name, language, nats[of_source], tokens[of_source], sizes[of_source], None)
            rows += [row | {"source": source} for row in part]
        items += [
            {
                "id": document.id,
                "language": language,
                **({"source": document.source} if by_source else {}),
                "nats": round(float(loss), 3),
                "tokens": int(count),
                "bytes": document.bytes,
            }
            for document, loss, count in zip(own, nats, tokens, strict=True)
        ]
    settings = {"window": window, "stride": stride, "documents": layout, "scored": LAYOUTS[layout]}
    return {"results": rows, "items": items, "settings": settings}


def ratio_rows(
    name: str, language: str, nats: np.ndarray, tokens: np.ndarray, sizes: np.ndarray, seconds: float | None
) -> list[dict[str, Any]]:
    """The rows `loss` (nats a token), `perplexity` and `bits_per_byte` of one group of documents.

    Args:
        nats, tokens, sizes: of each document its loss, scored tokens and UTF-8 bytes.
        seconds: None where the time of this group was not taken.
    """
    loss, loss_error = ratio_and_error(nats, tokens)
    per_byte, per_byte_error = ratio_and_error(nats / math.log(2), sizes)
    perplexity = math.exp(min(loss, 700.0))  # exp overflows where a loss is absurd
    measures = {
        "loss": (loss, loss_error),
        "perplexity": (perplexity, None if loss_error is None else perplexity * loss_error),
        "bits_per_byte": (per_byte, per_byte_error),
    }
    amounts: dict[str, float] = {"documents": len(nats), "tokens": int(tokens.sum()), "bytes": int(sizes.sum())}
    if seconds is not None:
        amounts["seconds"] = round(seconds, 2)
    return [
        {"set": name, "language": language, "metric": metric, "value": value, "stderr": error, **amounts}
        for metric, (value, error) in measures.items()
    ]


def encode_texts(
    texts: Iterable[Text], tokenizer: Any, limit: int | None = None, controls: int = 0, languages: int = 0
) -> list[Encoded]:
    """Documents as ids, in the order of their files.

    Args:
        limit: take whole documents until those of a language have this many tokens; None: all.
        controls: control tokens that count for each document.
        languages: reading goes on until so many have reached the limit; at least all that were met so far.
    """
    found: list[Encoded] = []
    tokens: dict[str, int] = {}
    texts = iter(texts)
    while block := list(islice(texts, 64)):
        wanted = [text for text in block if limit is None or tokens.get(text.language, 0) < limit]
        for text, ids in zip(wanted, tokenizer.encode_batch([text.text for text in wanted]), strict=True):
            if not len(ids) or (limit is not None and tokens.get(text.language, 0) >= limit):
                continue
            tokens[text.language] = tokens.get(text.language, 0) + len(ids) + controls
            size = len(text.text.encode())
            found.append(Encoded(text.id, text.language, text.source, text.place, np.asarray(ids), size))
        if limit is not None and len(tokens) >= languages and all(count >= limit for count in tokens.values()):
            break
    return sorted(found, key=lambda document: document.place)


def document_nats(
    model: Any,
    tokenizer: Any,
    bos: bool,
    documents: Sequence[np.ndarray],
    layout: Documents,
    window: int,
    stride: int,
    done: Callable[[int], object] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Summed loss of each document in nats (float64) and its number of scored tokens (int64)."""
    begin = start_id(tokenizer, bos)
    if layout == "apart":
        sequences = [np.concatenate([[begin], ids]).astype(np.int64) for ids in documents]
        starts = np.cumsum([0, *(len(sequence) for sequence in sequences)])
        tokens_N = np.concatenate(sequences)
        spans = [
            tuple(starts[i] + place for place in span)
            for i, sequence in enumerate(sequences)
            for span in windows(len(sequence) - 1, window, stride)
        ]
        losses_N = _losses(model, tokens_N, spans, None, done)
        return np.add.reduceat(losses_N, starts[:-1]), np.array([len(ids) for ids in documents], np.int64)
    end = tokenizer.eos_id if tokenizer.eos_id is not None else begin
    before, masked = [begin] * bos, layout == "masked"
    whole = [np.concatenate([before, ids, [end]]).astype(np.int64) for ids in documents]
    tokens_N = np.concatenate([[end], *whole])
    spans = list(windows(len(tokens_N) - 1, window, stride))
    losses_N = _losses(model, tokens_N, spans, end if masked else None, done)[1:]
    starts = np.cumsum([0, *(len(ids) for ids in whole)])[:-1]
    if masked:
        losses_N[starts] = 0.0  # nothing in sight to predict them from
    return np.add.reduceat(losses_N, starts), np.array([len(ids) - masked for ids in whole], np.int64)


def start_id(tokenizer: Any, bos: bool) -> int:
    """The id that stands before a text: <s>, or the </s> of the text before; a tokenizer may have but one of them."""
    first, second = (tokenizer.bos_id, tokenizer.eos_id) if bos else (tokenizer.eos_id, tokenizer.bos_id)
    return first if first is not None else second


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(first token read, first and last + 1 that are followed by a scored one) of the windows over `length` inputs."""
    scored = 0
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        yield begin, scored, end
        scored = end
        if end == length:
            return


@torch.no_grad()
def _losses(
    model: Any,
    tokens_N: np.ndarray,
    spans: Sequence[tuple[int, ...]],
    separator: int | None,
    done: Callable[[int], object],
) -> np.ndarray:
    """The loss of each token that a window scores, from the tokens before it in the window; 0 of the others.

    Args:
        spans: of `windows`, as places in tokens_N.
        separator: the id that ends documents, when they shall not see each other.
    """
    losses_N = np.zeros(len(tokens_N))
    device = model.device
    for batch in _batches(spans):
        width = max(end - begin for begin, _, end in batch)
        tokens_BT = np.zeros((len(batch), width), np.int64)  # padded at the right, seen by nothing
        for row, (begin, _, end) in zip(tokens_BT, batch, strict=True):
            row[: end - begin] = tokens_N[begin:end]
        tokens = torch.from_numpy(tokens_BT).to(device)
        if separator is None:
            hidden_BTD = model.hidden(tokens)
        else:
            hidden_BTD = model.hidden(tokens, starts_BT=document_starts(tokens, separator))
        places_N = np.concatenate([np.arange(scored, end) for _, scored, end in batch])
        rows_N = np.repeat(np.arange(len(batch)), [end - scored for _, scored, end in batch])
        columns_N = places_N - np.array([begin for begin, _, _ in batch])[rows_N]
        hidden_ND = hidden_BTD[torch.from_numpy(rows_N).to(device), torch.from_numpy(columns_N).to(device)]
        targets = torch.from_numpy(tokens_N[places_N + 1]).to(device)
        logprobs, _ = target_logprobs(model, hidden_ND, targets)
        losses_N[places_N + 1] = -logprobs.double().cpu().numpy()
        done(len(places_N))
    if not np.isfinite(losses_N).all():
        raise UserError("the model gives losses that are not finite: its weights are damaged or have diverged")
    return losses_N


def _batches(spans: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Windows of like length together, the longest first, `BUDGET` tokens a batch."""
    batch: list[tuple[int, ...]] = []
    for span in sorted(spans, key=lambda span: span[0] - span[2]):
        if batch and (batch[0][2] - batch[0][0]) * (len(batch) + 1) > BUDGET:
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch


def perplexity_table(result: dict[str, Any]) -> str:
    """A line for each language and source, and below what was read and scored."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for row in result["results"]:
        group = groups.setdefault((row["language"], row.get("source", "")), dict(row))
        error = "" if row["stderr"] is None else f" ± {row['stderr']:.{1 if row['metric'] == 'perplexity' else 3}f}"
        group[row["metric"]] = f"{row['value']:.{1 if row['metric'] == 'perplexity' else 3}f}{error}"
    lines = [
        [language, source or "all", f"{row['documents']:,}", f"{row['tokens']:,}", f"{row['bytes']:,}"]
        + [row[metric] for metric in ("loss", "perplexity", "bits_per_byte")]
        for (language, source), row in groups.items()
    ]
    settings = result["settings"]
    headers = ["language", "source", "documents", "tokens", "bytes", "loss (nats/token)", "perplexity", "bits/byte"]
    note = f"window {settings['window']}, stride {settings['stride']}; {settings['scored']}"
    return f"{table(headers, lines)}\n{note}; ± standard error over documents"

"""Loss on held-out text, in units that can be compared: per token, and per UTF-8 byte for other tokenizers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xmodel.console import progress
from xmodel.errors import UserError
from xmodel.evaluate.scorer import BUDGET, target_logprobs
from xmodel.model.documents import document_starts
from xmodel.model.transformer import Transformer
from xmodel.tokenizer.codec import Tokenizer


def perplexity(
    model: Transformer, tokenizer: Tokenizer, folder: Path, bos: bool, limit: int, document_mask: bool = False
) -> dict[str, Any]:
    """Loss, perplexity and bits per byte of the held-out text in `folder`/{en,zh,...}.parquet, a language apart.

    Text is laid out as in training: documents, each `[<s>] text </s>`, one behind another, cut into windows of the
    model's context length that do not overlap. Every token is predicted once, the first from a `</s>`; with
    `document_mask` (as the model was trained) documents do not see each other, and their `<s>` is not predicted.

    Standard errors are those of a ratio of sums over documents (nats over tokens, bits over bytes), by the delta
    method: tokens of a document are not independent, documents nearly are.

    Args:
        limit: whole documents, spread evenly over the file, are read until they have this many tokens in each language.

    Returns:
        results: three rows a language. items: per document its id, nats, tokens and bytes.

    Raises:
        UserError: no held-out text.
    """
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise UserError(f"{folder}: no held-out text (*.parquet); corpus.holdout sets some aside")
    rows, items = [], []
    for path in paths:
        started = time.monotonic()
        documents = read_documents(path, tokenizer, bos, limit)
        if not documents:
            continue
        tokens = np.array([len(ids) - document_mask for _, ids, _ in documents], np.int64)
        sizes = np.array([size for _, _, size in documents], np.int64)
        with progress(f"evaluate perplexity ({path.stem})", int(tokens.sum()), "tokens") as shown:
            ids_by_document = [ids for _, ids, _ in documents]
            nats = document_nats(model, ids_by_document, tokenizer.eos_id, shown.advance, document_mask)
        rows += ratio_rows(path.stem, nats, tokens, sizes, time.monotonic() - started)
        items += [
            {"id": name, "language": path.stem, "nats": round(float(loss), 3), "tokens": int(count), "bytes": size}
            for (name, _, size), loss, count in zip(documents, nats, tokens, strict=True)
        ]
    if not rows:
        raise UserError(f"{folder}: the held-out text is empty; a larger corpus.holdout sets more aside")
    return {"results": rows, "items": items}


def ratio_rows(
    language: str, nats: np.ndarray, tokens: np.ndarray, sizes: np.ndarray, seconds: float
) -> list[dict[str, Any]]:
    """The result rows of one language from its documents' losses (nats), token counts and UTF-8 sizes (bytes)."""
    loss, loss_error = ratio_and_error(nats, tokens)
    per_byte, per_byte_error = ratio_and_error(nats / math.log(2), sizes)
    perplexity = math.exp(min(loss, 700.0))  # exp overflows where a loss is absurd
    measures = {
        "loss": (loss, loss_error),
        "perplexity": (perplexity, None if loss_error is None else perplexity * loss_error),
        "bits_per_byte": (per_byte, per_byte_error),
    }
    common = {"set": "validation", "language": language}
    amounts = {
        "documents": len(nats),
        "tokens": int(tokens.sum()),
        "bytes": int(sizes.sum()),
        "seconds": round(seconds, 2),
    }
    return [
        {**common, "metric": metric, "value": value, "stderr": error, **amounts}
        for metric, (value, error) in measures.items()
    ]


def ratio_and_error(numerators: np.ndarray, denominators: np.ndarray) -> tuple[float, float | None]:
    """Σx / Σy over independent pairs and its standard error by the delta method (None for a single pair)."""
    n, total = len(numerators), float(denominators.sum())
    ratio = float(numerators.sum()) / total
    if n < 2:
        return ratio, None
    residuals = numerators - ratio * denominators
    return ratio, math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total


def read_documents(path: Path, tokenizer: Tokenizer, bos: bool, limit: int) -> list[tuple[str, np.ndarray, int]]:
    """(id, ids with their control tokens, UTF-8 bytes) of documents that have `limit` tokens together, in file order.

    They are spread evenly over the file, in which one source stands behind another.
    """
    found: dict[int, tuple[str, np.ndarray, int]] = {}
    tokens = 0
    for row, name, text in _spread(path):
        ids = tokenizer.encode_batch([text])[0].astype(np.int64)
        ids = np.concatenate([[tokenizer.bos_id] * bos, ids, [tokenizer.eos_id]]).astype(np.int64)
        found[row] = (name, ids, len(text.encode()))
        tokens += len(ids)
        if tokens >= limit:
            break
    return [found[row] for row in sorted(found)]


def _spread(path: Path, block: int = 256) -> Iterator[tuple[int, str, str]]:
    """(row, id, text) of every row once, in an order of which any beginning is spread evenly: golden-section steps."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        rows = file.metadata.num_rows
        stride = round(rows * (math.sqrt(5) - 1) / 2)
        while math.gcd(stride, rows) > 1:
            stride += 1
        order_R = np.arange(rows) * stride % max(rows, 1)
        starts = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
        for first in range(0, rows, block):
            chosen = order_R[first : first + block]
            texts = {}
            groups = np.searchsorted(starts, chosen, side="right") - 1
            for group in np.unique(groups):
                table = file.read_row_group(group, columns=["id", "text"])
                for row in chosen[groups == group]:
                    index = int(row - starts[group])
                    texts[row] = (table["id"][index].as_py(), table["text"][index].as_py())
            yield from ((int(row), *texts[row]) for row in chosen)


@torch.no_grad()
def document_nats(
    model: Transformer,
    documents: list[np.ndarray],
    before: int,
    done: Callable[[int], object] = lambda count: None,
    document_mask: bool = False,
) -> np.ndarray:
    """Summed loss of each document, in nats, when they stand one behind another after the token `before`.

    With `document_mask` they do not see each other (each ends with `before`), and their first tokens have no loss.
    """
    device = model.rotary.device
    targets_N = np.concatenate(documents)
    tokens_N = np.concatenate([[before], targets_N[:-1]])
    width = min(model.config.context_length, len(tokens_N))
    step = max(1, BUDGET // width) * width  # tokens of a batch: whole windows
    losses_N = np.empty(len(targets_N))
    for first in range(0, len(tokens_N), step):
        tokens, targets = tokens_N[first : first + step], targets_N[first : first + step]
        padded = np.pad(tokens, (0, -len(tokens) % width))  # at the right of the last window, seen by nothing
        tokens_BT = torch.from_numpy(padded.reshape(-1, width)).to(device)
        starts_BT = document_starts(tokens_BT, before) if document_mask else None
        hidden_BTD = model.hidden(tokens_BT, starts_BT=starts_BT)
        hidden_ND = hidden_BTD.flatten(0, 1)[: len(targets)]
        logprobs, _ = target_logprobs(model, hidden_ND, torch.from_numpy(targets).to(device))
        losses_N[first : first + step] = -logprobs.double().cpu().numpy()
        done(len(targets))
    if not np.isfinite(losses_N).all():
        raise UserError("the model gives losses that are not finite: its weights are damaged or have diverged")
    if document_mask:
        losses_N[tokens_N == before] = 0.0
    starts = np.cumsum([0, *(len(ids) for ids in documents[:-1])])
    return np.add.reduceat(losses_N, starts)

"""The quality filter: documents that surprise a language model of good text are dropped (Wenzek et al. 2020, "CCNet:
Extracting High Quality Monolingual Datasets from Web Crawl Data", section 4).

`prepare` runs once: it trains a Kneser-Ney model on the reference text of each language, scores a sample of the corpus,
and writes the models and the thresholds into a folder. `quality_stage` opens that folder and is a pure function of a
batch from then on, in any number of processes. Perplexity is per unit (a word, a Chinese character, a punctuation mark,
a line end; see kneser_ney/units.py), so it compares within a language, not between languages.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from xmodel.corpus.batches import alive, mark, with_column
from xmodel.corpus.kneser_ney.estimate import estimate
from xmodel.corpus.kneser_ney.model import (
    LanguageModel,
    Scores,
    document_sums,
    load_model,
    perplexities,
    score,
    write_model,
)
from xmodel.corpus.kneser_ney.units import identify, new_vocabulary
from xmodel.corpus.sources import read
from xmodel.errors import MachineError, UserError
from xmodel.files import read_json, write_json
from xmodel.recipe.settings import Quality

LEAST_SAMPLE = 20  # documents from which a quantile is worth something


def prepare(settings: Quality, sample: Iterable[pa.RecordBatch], folder: Path, *, seed: int) -> dict[str, Any]:
    """Train the models and find the thresholds.

    Args:
        settings: `corpus.quality` of the recipe, paths absolute.
        sample: batches with the columns `text`, `reason` and `language`, as the heuristic filters leave them; of these
            documents, those without a reason are what the quantiles are taken of. Read only if a quantile is needed.
        folder: gets a folder for each language and quality.json, all of it anew.
        seed: of sandbox sources among the reference.

    Returns:
        What quality.json holds: for each language documents, units and n-grams of the reference, how many documents
        the quantiles were taken of and their perplexity at the quantiles 0.01 to 0.99, `head` and `tail` (thresholds).

    Raises:
        UserError: reference text that cannot be read or is empty, or a sample too small for a quantile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    languages = sorted({source.language for source in settings.reference})
    described: dict[str, Any] = {language: _train(settings, language, folder, seed) for language in languages}
    models = {language: load_model(folder / language) for language in languages}
    values = {language: _value(settings, language) for language in languages}
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    if any(value is None for value in values.values()):
        for batch in sample:
            perplexity_D, _ = _perplexity(batch, models, {})
            for language in languages:
                here_D = (_languages(batch) == language) & ~np.isnan(perplexity_D)
                found[language].append(perplexity_D[here_D])
    for language in languages:
        sample_D = np.concatenate([np.zeros(0), *found[language]])
        row = described[language]
        row["sample_documents"] = len(sample_D)
        value = values[language]
        if value is not None:
            row |= {"head": value, "tail": value}
        elif len(sample_D) < LEAST_SAMPLE:
            raise UserError(
                f"corpus.quality: {len(sample_D)} {language} documents are too few to take a quantile of "
                f"({LEAST_SAMPLE} are the least); give max_perplexity_{language}, or no {language} reference"
            )
        else:
            row["quantiles"] = {
                f"{share:.2f}": float(np.quantile(sample_D, share)) for share in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
            }
            row |= {name: float(np.quantile(sample_D, getattr(settings, name))) for name in ("head", "tail")}
    write_json(folder / "quality.json", described)
    return described


def quality_stage(settings: Quality, folder: Path) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """The stage: adds the column `perplexity` and marks documents with the reason "perplexity".

    Documents that have a reason already, that hold no unit, or whose language has no model are not scored: null. A
    document is marked when its perplexity is above the threshold of its language, or when more than
    `max_bad_paragraphs` of its units stand in paragraphs above it.

    Args:
        settings: `corpus.quality` of the recipe; without a reference the stage only adds an empty column.
        folder: what `prepare` wrote.

    Raises:
        MachineError: the folder is damaged or belongs to other settings.
    """
    languages = sorted({source.language for source in settings.reference})
    models = {language: load_model(folder / language) for language in languages}
    thresholds: dict[str, float] = {}
    if languages:
        described = read_json(folder / "quality.json")
        if sorted(described) != languages:
            raise MachineError(f"{folder}: has models for {', '.join(described)}, not {', '.join(languages)}")
        for language in languages:
            bounds = {"head": described[language]["head"], "middle": described[language]["tail"], "all": np.inf}
            thresholds[language] = bounds[settings.keep]

    def stage(batch: pa.RecordBatch) -> pa.RecordBatch:
        perplexity_D, bad_D = _perplexity(batch, models, thresholds)
        limit_D = np.full(len(batch), np.inf)
        for language, threshold in thresholds.items():
            limit_D[_languages(batch) == language] = threshold
        fails_D = (perplexity_D > limit_D) | (bad_D > settings.max_bad_paragraphs)
        column = pa.array(perplexity_D.astype(np.float32), pa.float32(), mask=np.isnan(perplexity_D))
        return mark(with_column(batch, "perplexity", column), ["perplexity"], np.where(fails_D, 0, -1))

    return stage


def paragraph_perplexities(column: pa.Array, model: LanguageModel) -> tuple[np.ndarray, np.ndarray]:
    """Perplexity of each paragraph (a line that holds a unit) of D documents.

    Returns:
        perplexity_L: float64.
        ends_D1: int64; the paragraphs of document d are perplexity_L[ends_D1[d] : ends_D1[d + 1]].
    """
    scores = score(column, model)
    return perplexities(scores.logs_L, scores.units_L), scores.ends_D1


def _languages(batch: pa.RecordBatch) -> np.ndarray:
    return batch["language"].to_numpy(zero_copy_only=False)


def _value(settings: Quality, language: str) -> float | None:
    """The threshold given as a value, if there is one."""
    return getattr(settings, f"max_perplexity_{language}") or None


def _train(settings: Quality, language: str, folder: Path, seed: int) -> dict[str, Any]:
    """Train the model of one language into folder/<language>."""
    vocabulary = new_vocabulary()
    documents = units = 0
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{language}-", suffix=".partial") as name:
        scratch = Path(name)
        with open(scratch / "tokens", "wb") as stream:  # keys are packed when the size of the vocabulary is known
            for index, source in enumerate(settings.reference):
                if source.language != language:
                    continue
                for batch in read(source, f"corpus.quality.reference[{index}]", seed=seed):
                    ids_T, _ = identify(batch["text"], vocabulary, grow=True)
                    ids_T.tofile(stream)
                    documents += len(batch)
                    units += len(ids_T)

        def tokens() -> Iterable[np.ndarray]:
            with open(scratch / "tokens", "rb") as stream:
                while len(block := np.fromfile(stream, np.int32, 1 << 20)):
                    yield block

        result = estimate(
            tokens, vocabulary.size, order=settings.order, prune=settings.prune, memory=settings.memory, folder=scratch
        )
        write_model(folder / language, vocabulary, result.counts, result.ngrams, units="folded")
    return {"documents": documents, "units": units, "ngrams": result.counts}


def _perplexity(
    batch: pa.RecordBatch, models: dict[str, LanguageModel], thresholds: dict[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Perplexity of each document (NaN: not scored), and the share of its units in paragraphs above the threshold."""
    perplexity_D = np.full(len(batch), np.nan)
    bad_D = np.zeros(len(batch))
    wanted_D, languages_D = alive(batch), _languages(batch)
    for language, model in models.items():
        which_E = np.flatnonzero(wanted_D & (languages_D == language))
        if len(which_E) == 0:
            continue
        column = batch["text"] if len(which_E) == len(batch) else batch["text"].take(pa.array(which_E))
        scores: Scores = score(column, model)
        units_E = document_sums(scores.units_L, scores.ends_D1)
        perplexity_D[which_E] = perplexities(document_sums(scores.logs_L, scores.ends_D1), units_E)
        bad_L = perplexities(scores.logs_L, scores.units_L) > thresholds.get(language, np.inf)
        bad_D[which_E] = document_sums(scores.units_L * bad_L, scores.ends_D1) / np.maximum(units_E, 1)
    return perplexity_D, bad_D

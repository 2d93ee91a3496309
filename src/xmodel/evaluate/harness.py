"""Our models as an `LM` of lm-evaluation-harness, and the scoring of one of its tasks.

What is scored, token for token, is what the harness's own `hf` backend scores with the exported model: how context and
continuation are split, what stands before an empty context, what is cut away on the left, where generated text ends.
Only the computation is ours (`scorer`, `inference.many`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from xmodel.errors import UserError
from xmodel.evaluate.choices import gold_bits_per_byte, ratio_and_error
from xmodel.evaluate.replicas import on_replicas, replicas
from xmodel.evaluate.requests_cache import encode_cached
from xmodel.evaluate.scorer import Request, Score, loglikelihood, truncated
from xmodel.evaluate.tasks import FEWSHOT_SEED, Prepared
from xmodel.files import read_json
from xmodel.inference.fast import prepare
from xmodel.inference.many import generate_many

try:
    from lm_eval.api.model import TemplateLM
except ImportError:
    raise UserError("the paper's suites need lm-evaluation-harness: pip install 'xmodel[harness]'") from None

MAX_NEW_TOKENS = 256  # the harness's default where a task does not say
BOOTSTRAP = 2_000  # draws for the standard error of F1 and Matthews correlation


class SubjectLM(TemplateLM):
    """A `Subject` behind the harness's interface; `lm_eval.simple_evaluate(model=SubjectLM(subject), ...)` works too.

    Attributes:
        truncated: requests that lost the beginning of their context since it was last set to 0.
        done: called with the number of requests that each batch has finished.
    """

    def __init__(
        self,
        subject: Any,
        done: Callable[[int], object] = lambda count: None,
        devices: Sequence[str] = (),
        fast: bool = False,
    ) -> None:
        """A model to be scored.

        Args:
            devices: where copies of the model share the requests; none: the model's own alone.
            fast: whether it may be made ready for fast generation (inference/fast.py), which moves its weights: not for
                a model that is being trained.
        """
        super().__init__()
        self.fast, self._decoders = fast, {}
        self.subject, self.done = subject, done
        self.model, self.codec = subject.model, subject.tokenizer
        self.models = replicas(subject.model, devices) if len(devices) > 1 else [subject.model]
        self.truncated = 0

    @property
    def eot_token_id(self) -> int:
        return self.codec.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: <s>, whether or not texts begin with it otherwise."""
        return self.codec.bos_id if self.codec.bos_id is not None else self.codec.eos_id

    @property
    def max_length(self) -> int:
        """Tokens that the model sees at once."""
        return self.model.config.context_length

    @property
    def tokenizer_name(self) -> str:
        return self.subject.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._encode([string], add_special_tokens)[0]

    def _encode(self, texts: Sequence[str], add_special_tokens: bool | None = None) -> list[list[int]]:
        """Ids of each text, behind <s> where the tokenizer puts it."""
        start = self.subject.bos if add_special_tokens is None else add_special_tokens and self.subject.bos
        before = [self.codec.bos_id] if start else []
        return [before + ids.tolist() for ids in encode_cached(self.codec, texts)]

    def pairs(self, requests: Sequence[tuple[str, str]]) -> list[Request]:
        """Context and continuation in tokens, as `TemplateLM._encode_pair` splits them, all texts encoded at once.

        Where context and continuation share a token, so that nothing of the continuation would be left (the harness
        stops there), the context ends before that token.
        """
        moved = []
        for context, continuation in requests:
            kept = context.rstrip() if context else ""
            moved.append((kept, context[len(kept) :] + continuation) if context else ("", continuation))
        texts = dict.fromkeys(text for context, rest in moved if context for text in (context, context + rest))
        ids = dict(zip(texts, self._encode(list(texts)), strict=True))
        bare = list(dict.fromkeys(rest for context, rest in moved if not context))
        alone = dict(zip(bare, self._encode(bare, add_special_tokens=False), strict=True))
        prefix = self.prefix_token_id
        found: list[Request] = []
        for context, rest in moved:
            if context:
                whole, before = ids[context + rest], ids[context]
                split = len(before) if len(whole) > len(before) else len(whole) - 1
                found.append(((before if split == len(before) else whole[:split]) or [prefix], whole[split:]))
            else:
                found.append(([prefix], alone[rest]) if alone[rest][0] != prefix else ([prefix], alone[rest][1:]))
        return found

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return self._score(self.pairs([request.args for request in requests]))

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        return self._score([(context, continuation) for _, context, continuation in requests])

    def _score(self, pairs: Sequence[Request]) -> list[tuple[float, bool]]:
        self.truncated += truncated(self.model, pairs)

        def work(model: Any, places: list[int]) -> list[Score]:
            return loglikelihood(model, [pairs[place] for place in places], done=self.done)

        found = on_replicas(self.models, [context for context, _ in pairs], work)
        return [(score.logprob, score.greedy) for score in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log P of whole texts, in windows of the model's context that do not overlap in what they predict."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        owners, windows = [], []
        for number, ids in enumerate(self._encode([request.args[0] for request in requests])):
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                owners.append(number)
                windows.append(make_disjoint_window(window))
        totals = [0.0] * len(requests)
        for number, (logprob, _) in zip(owners, self._score(windows), strict=True):
            totals[number] += logprob
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to the first of the request's stop texts.

        Raises:
            UserError: a request wants as many tokens as the model's context holds.
        """
        wanted = [_generation(request.args[1], self._end) for request in requests]
        encoded = self._encode([request.args[0] for request in requests])
        answers = [""] * len(requests)
        for temperature in sorted({temperature for _, _, temperature in wanted}):
            rows = [number for number, each in enumerate(wanted) if each[2] == temperature]
            rooms = [wanted[number][1] for number in rows]
            if max(rooms) >= self.max_length:
                raise UserError(
                    f"up to {max(rooms)} tokens are to be written, and the model's context holds {self.max_length}, "
                    "prompt included"
                )
            prompts = [encoded[number] for number in rows]
            cut = [prompt[-(self.max_length - room) :] for prompt, room in zip(prompts, rooms, strict=True)]
            self.truncated += sum(len(short) < len(prompt) for short, prompt in zip(cut, prompts, strict=True))
            stops = [wanted[number][0] for number in rows]
            written = self._write(cut, rooms, stops, temperature, rows)
            for number, ids in zip(rows, written, strict=True):
                answers[number] = _before_stops(self.decode(ids), wanted[number][0])
        return answers

    def _write(
        self, prompts: list[list[int]], rooms: list[int], stops: list[list[str]], temperature: float, seeds: list[int]
    ) -> list[list[int]]:
        """The answers' ids. A sampled answer follows from its seed, so the number of devices does not change it."""

        def work(model: Any, places: list[int]) -> list[list[int]]:
            with self._fast_generation(model):
                return generate_many(
                    model,
                    [prompts[place] for place in places],
                    max_new_tokens=[rooms[place] for place in places],
                    stop_ids=(self.codec.eos_id,),
                    stop_texts=[stops[place] for place in places],
                    decode=self.decode,
                    temperature=temperature,
                    seeds=[seeds[place] for place in places],
                    done=self.done,
                )

        return on_replicas(self.models, prompts, work)

    @contextmanager
    def _fast_generation(self, model: Any) -> Iterator[None]:
        """Only here our kernels run: what is scored has PyTorch's bits, whatever was written before."""
        if not self.fast or not hasattr(model, "decoder"):
            yield
            return
        model.decoder = self._decoders.get(id(model))
        try:
            self._decoders[id(model)] = prepare(model).decoder
            yield
        finally:
            model.decoder = None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without control tokens, as the exported tokenizer decodes it."""
        if self._decoder is None:
            return self.codec.decode(ids)
        controls = self._controls
        return self._decoder.decode([token for token in map(int, ids) if token not in controls])

    @cached_property
    def _decoder(self) -> Any:
        """Of a run's tokenizer.json: it and our own decoder differ where bytes are no UTF-8."""
        path = Path(getattr(self.codec, "folder", "")) / "tokenizer.json"
        if not path.is_file():
            return None
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(path))

    @cached_property
    def _end(self) -> str | None:
        """How the end of a text is written: the harness stops there as well, should a model spell it out."""
        path = Path(getattr(self.codec, "folder", "")) / "tokenizer_config.json"
        return read_json(path).get("eos_token") if path.is_file() else getattr(self.codec, "eos_text", None)

    @cached_property
    def _controls(self) -> set[int | None]:
        named = {self.codec.bos_id, self.codec.eos_id, self.codec.unk_id}
        return named | {number for number, piece in enumerate(self.codec.pieces) if not piece}


def _generation(settings: dict[str, Any], end: str | None) -> tuple[list[str], int, float]:
    """Stop texts, most new tokens and temperature (0: greedy) of a request's settings."""
    until = settings.get("until") or []
    room = next((settings[key] for key in ("max_gen_toks", "max_new_tokens", "max_tokens") if settings.get(key)), None)
    temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") is not False else 0.0
    stops = [*([until] if isinstance(until, str) else until), *([end] if end else [])]
    return stops, int(room or MAX_NEW_TOKENS), temperature


def _before_stops(text: str, stops: Sequence[str]) -> str:
    for stop in filter(None, stops):
        text = text.split(stop)[0]
    return text


def most_new_tokens(task: Any) -> int:
    """How many tokens a task may want written behind a prompt; 0 where it only has texts scored."""
    return _generation(task.config.generation_kwargs, None)[1] if task.OUTPUT_TYPE == "generate_until" else 0


def score_task(
    lm: SubjectLM, prepared: Prepared, task: Any, limit: int | None = None, places: Sequence[int] | None = None
) -> dict[str, Any]:
    """Carry out one task: the harness builds the requests and judges the answers, `lm` gives them.

    Args:
        task: `open_task(prepared)`; it may be scored again, with the same examples before the same questions.
        limit: only the first so many questions.
        places: only the questions with these numbers, in this order.

    Returns:
        results: a row a metric. items: a record a question. truncated: requests that lost the beginning of a context.
    """
    started, lm.truncated = time.monotonic(), 0
    task.set_fewshot_seed(FEWSHOT_SEED)
    numbers = list(range(len(task.task_docs)) if places is None else places)[:limit]
    docs = [task.task_docs[number] for number in numbers]
    groups = []
    for number, doc in zip(numbers, docs, strict=True):
        context = task.fewshot_context(doc, num_fewshot=prepared.shots, gen_prefix=task.doc_to_prefix(doc))
        found = task.construct_requests(doc=doc, ctx=context, metadata=(prepared.name, number, task.config.repeats))
        groups.append(found if isinstance(found, list) else [found])
    task._instances = [instance for group in groups for instance in group]
    repeated = [instance for instance in task._instances for _ in range(instance.repeats)]
    answers = getattr(lm, task._instances[0].request_type)(repeated)
    for instance, answer in zip(repeated, answers, strict=True):
        instance.resps.append(answer)
    task.apply_filters()

    values: dict[str, list[Any]] = {}
    filters = list(groups[0][0].filtered_resps)
    for doc, group in zip(docs, groups, strict=True):
        for number, name in enumerate(filters):
            measured = task.process_results(doc, [instance.filtered_resps[name] for instance in group])
            for metric, value in measured.items():
                key = metric if not number else f"{metric},{name}"
                values.setdefault(key, []).append(value)
    seconds = time.monotonic() - started
    chance = _chance(task, docs, prepared)
    rows = [
        {
            "suite": prepared.benchmark.suite,
            "benchmark": prepared.benchmark.name,
            "set": prepared.name,
            "language": prepared.benchmark.language,
            "shots": prepared.shots,
            "metric": metric,
            **_aggregate(task, metric, found),
            "chance": chance if metric.startswith(("acc", "exact_match")) else None,
            "items": len(docs),
            "seconds": round(seconds, 2),
        }
        for metric, found in values.items()
        if metric != "bypass"
    ]
    records = [
        _record(task, doc, group, values, place) for place, (doc, group) in enumerate(zip(docs, groups, strict=True))
    ]
    if all("gold_bpb" in record for record in records):
        rows.append(rows[0] | _gold_row(records, groups))
    items = [{"id": number} | record for number, record in zip(numbers, records, strict=True)]
    return {"results": rows, "items": items, "truncated": lm.truncated}


def _aggregate(task: Any, metric: str, values: Sequence[Any]) -> dict[str, Any]:
    """The figure by the harness's own aggregation, and its standard error.

    Of a mean: s / √n, as the harness has it. Of a perplexity: by the delta method. Of F1 and Matthews correlation,
    which depend on the table of answers alone: by a bootstrap of that table.
    """
    from lm_eval.api.metrics import mean

    plain = metric.split(",")[0]
    aggregate = task.aggregation().get(plain, mean)
    value, n = float(aggregate(list(values))), len(values)
    error: float | None = None
    if n > 1 and plain in ("f1", "mcc"):
        error = _table_error(aggregate, values)
    elif n > 1:
        numbers = np.array(values, np.float64)
        error = float(np.std(numbers, ddof=1)) / math.sqrt(n)
        error *= value if plain == "perplexity" else 1.0
    return {"value": value, "stderr": error}


def _table_error(aggregate: Callable[[list[Any]], float], values: Sequence[Any]) -> float:
    pairs, counts = np.unique(np.array(values, np.int64), axis=0, return_counts=True)
    draws = np.random.default_rng(0).multinomial(len(values), counts / len(values), size=BOOTSTRAP)
    gold, picked = pairs.T
    both = draws[:, (gold == 1) & (picked == 1)].sum(1)
    wrong = draws[:, (gold == 0) & (picked == 1)].sum(1)
    missed = draws[:, (gold == 1) & (picked == 0)].sum(1)
    neither = draws[:, (gold == 0) & (picked == 0)].sum(1)
    if aggregate.__name__ == "f1_score":
        figures = 2 * both / np.maximum(2 * both + wrong + missed, 1)
    else:
        margins = np.array([both + wrong, both + missed, neither + wrong, neither + missed], np.float64).prod(0)
        figures = (both * neither - wrong * missed) / np.sqrt(np.where(margins > 0, margins, np.inf))
    return float(np.std(figures, ddof=1))


def _chance(task: Any, docs: Sequence[Any], prepared: Prepared) -> float | None:
    """What guessing uniformly would get; nobody guesses a word, and how BBH would be guessed is not defined."""
    if task.OUTPUT_TYPE == "multiple_choice":
        return sum(1 / len(task.doc_to_choice(doc)) for doc in docs) / len(docs)
    return None if prepared.benchmark.data == "bbh" else 0.0


def _record(task: Any, doc: Any, group: Sequence[Any], values: dict[str, list[Any]], place: int) -> dict[str, Any]:
    """What is kept of one question, which is the `place`-th of those scored."""
    found = {metric: column[place] for metric, column in values.items()}
    measured = {metric: float(value) for metric, value in found.items() if isinstance(value, int | float)}
    right = measured.get("acc", measured.get("exact_match", measured.get("pass@1")))
    others = {metric: value for metric, value in measured.items() if metric not in ("acc", "exact_match", "perplexity")}
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if task.OUTPUT_TYPE == "generate_until":
        return {"answer": answer, "right": right, **others, "output": group[0].resps[0]}
    logprobs = [instance.resps[0][0] for instance in group]
    if task.OUTPUT_TYPE == "multiple_choice":
        picked: int | bool = int(np.argmax(logprobs))
        right = float(picked == answer) if right is None else right  # of CoLA, which has no accuracy
    else:
        picked = bool(group[0].resps[0][1])
    record = {"answer": answer, "picked": picked, "right": right, **others, "logprobs": [round(x, 5) for x in logprobs]}
    if task.OUTPUT_TYPE == "multiple_choice" and isinstance(answer, int) and 0 <= answer < len(group):
        record["gold_bpb"] = round(gold_bits_per_byte(logprobs[answer], group[answer].args[1]), 4)
    return record


def _gold_row(records: Sequence[dict[str, Any]], groups: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Bits of the right choices over their UTF-8 bytes, as they were scored: with the space before them."""
    right = [group[record["answer"]] for record, group in zip(records, groups, strict=True)]
    bits = [-instance.resps[0][0] / math.log(2) for instance in right]
    value, stderr = ratio_and_error(bits, [len(instance.args[1].encode()) for instance in right])
    return {"metric": "gold_bpb", "value": value, "stderr": stderr, "chance": None}

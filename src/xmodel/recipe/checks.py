"""What no single setting shows: sums, divisibility, names that must differ. Every problem is collected, none raised."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping

from xmodel.recipe.convert import Reading, number
from xmodel.recipe.presets import PRESETS, Preset
from xmodel.recipe.settings import Corpus, Quality, Recipe, Source

SANDBOX_PARTS = ("en", "zh", "parallel")
LARGEST_VOCABULARY = 65_536  # token ids are stored as uint16
RUN_NAME = re.compile(r"\w[\w.-]*")
SOURCE_NAME = re.compile(r"\w[\w-]*")  # no dot: overrides separate by dots


def check(recipe: Recipe, reading: Reading) -> None:
    """Note every problem of a resolved recipe in `reading`; what was refused before is not blamed twice."""
    if not RUN_NAME.fullmatch(recipe.name) or len(recipe.name.encode()) > 200:
        reading.report("name", f"`{recipe.name}` cannot name a folder; use letters, digits, `.`, `-` and `_`")
    if recipe.corpus.sources or not recipe.pretrain.init_from:  # an imported run has no corpus: `Run.imported`
        _check_corpus(recipe.corpus, reading)
    _check_model(recipe, reading)
    _check_pretrain(recipe, reading)
    _check_evaluate(recipe, reading)


def _check_corpus(corpus: Corpus, reading: Reading) -> None:
    filters = corpus.filters
    limits = ("corpus.filters.min_characters", "corpus.filters.max_characters")
    if reading.sound(*limits) and filters.min_characters > filters.max_characters:
        reading.report(limits[0], f"is larger than max_characters ({number(filters.max_characters)})")
    near = corpus.near_duplicates
    bands = "corpus.near_duplicates.bands"
    if reading.sound(bands, "corpus.near_duplicates.permutations") and near.bands > near.permutations:
        reading.report(bands, f"is larger than permutations ({near.permutations}): a band has at least one value")
    if corpus.index and not corpus.deduplicate and reading.sound("corpus.index", "corpus.deduplicate"):
        reading.report("corpus.index", "is only looked at when duplicates are: set corpus.deduplicate, or leave it out")
    if not reading.sound("corpus.sources", "corpus.validation"):
        return
    if not corpus.sources:
        reading.report("corpus.sources", "no source of text is given; at least one is needed")
        return
    if not corpus.holdout and not corpus.validation and reading.sound("corpus.holdout"):
        reading.report(
            "corpus.holdout", "is 0 and corpus.validation is empty, so there is no text to validate on; set one"
        )
    first: dict[str, str] = {}
    for section in ("sources", "validation"):
        for index, source in enumerate(getattr(corpus, section)):
            path = f"corpus.{section}[{index}]"
            _check_source(source, path, reading)
            twin = first.setdefault(source.name.casefold(), path)
            if twin != path and source.name:
                place = reading.place(twin)
                reading.report(path, "has the same name as another source" + (f" ({place.label})" if place else ""))
    weights = {source.name: source.weight for source in corpus.sources}
    numbers = {source.name: index for index, source in enumerate(corpus.sources)}
    if len(weights) == len(corpus.sources):  # else a name stands twice, which is noted
        none = [name for name, weight in weights.items() if not weight]
        _check_weights(weights, "corpus.sources", lambda name: f"corpus.sources[{numbers[name]}].weight", none, reading)
    _check_quality(corpus.quality, reading)


def _check_quality(quality: Quality, reading: Reading) -> None:
    if reading.sound("corpus.quality.reference"):
        for index, source in enumerate(quality.reference):
            path = f"corpus.quality.reference[{index}]"
            _check_source(source, path, reading)
            if source.language == "auto":
                reading.report(f"{path}.language", "is auto; a model is of one language: en or zh")
    path = "corpus.quality.prune"
    prune = quality.prune
    if reading.sound(path, "corpus.quality.order") and (
        not prune or prune[0] != 0 or prune != sorted(prune) or len(prune) > quality.order
    ):
        reading.report(
            path, "begins with 0, never falls, and has at most as many numbers as the order, as in [0, 0, 1]"
        )
    limits = ("corpus.quality.head", "corpus.quality.tail")
    if reading.sound(*limits) and quality.head > quality.tail:
        reading.report(limits[0], f"is larger than tail ({number(quality.tail)})")


def _check_source(source: Source, path: str, reading: Reading) -> None:
    if not source.name:
        reading.report(path, "needs a name")
    elif not SOURCE_NAME.fullmatch(source.name) or len(source.name.encode()) > 200:
        reading.report(f"{path}.name", f"`{source.name}` cannot name a file; use letters, digits, `-` and `_`")
    if source.reader == "stdlib":
        if source.paths:
            reading.report(f"{path}.paths", "the stdlib reader finds its files by itself; remove the line")
    elif not source.paths:
        wanted = f"parts ({', '.join(SANDBOX_PARTS)})" if source.reader == "sandbox" else "files, folders or patterns"
        reading.report(f"{path}.paths", f"the {source.reader} reader needs {wanted} to read")
    elif source.reader == "sandbox":
        for part in source.paths:
            if part not in SANDBOX_PARTS:
                near = difflib.get_close_matches(part, SANDBOX_PARTS, 1, 0.4)
                hint = f"; did you mean {near[0]}?" if near else ""
                reading.report(
                    f"{path}.paths", f"the sandbox has the parts {', '.join(SANDBOX_PARTS)}, not `{part}`{hint}"
                )


def _check_weights(
    weights: Mapping[str, float], path: str, path_of: Callable[[str], str], none: list[str], reading: Reading
) -> None:
    """That weights sum to 1 in whole millionths; `none`: sources without a weight, in case one was forgotten."""
    for name, weight in weights.items():
        if abs(weight * 1e6 - round(weight * 1e6)) > 1e-5:
            reading.report(path_of(name), f"{weight!r} has more than 6 decimals")
            return
    total = sum(round(weight * 1e6) for weight in weights.values())
    if total != 1_000_000:
        difference = f"{_millionths(abs(total - 1_000_000))} {'is missing' if total < 1_000_000 else 'too much'}"
        hint = f"; {', '.join(none[:5])} {'has' if len(none) == 1 else 'have'} none" if none else ""
        reading.report(path, f"the weights sum to {_millionths(total)}, not to 1 ({difference}{hint})")


def _millionths(count: int) -> str:
    return f"{count / 1e6:.6f}".rstrip("0").rstrip(".")


def _check_model(recipe: Recipe, reading: Reading) -> None:
    model, tokenizer = recipe.model, recipe.tokenizer
    if not reading.sound("model"):
        return
    missing = [name for name in Preset._fields if not getattr(model, name)]
    if missing:
        names = ", ".join(missing)
        reading.report("model", f"{names} missing; give the numbers, or a preset: {', '.join(PRESETS)}")
    else:
        if model.hidden % model.heads:
            reading.report(
                "model.heads", f"{model.heads} heads do not divide the hidden size of {number(model.hidden)}"
            )
        elif model.hidden // model.heads % 2:
            size = model.hidden // model.heads
            reading.report("model.heads", f"gives heads of size {size}; rotary positions need an even size")
        if model.heads % model.kv_heads:
            reading.report("model.kv_heads", f"{model.kv_heads} does not divide the {model.heads} query heads")
    if model.position_table < model.context_length:
        reading.report("model.position_table", f"is less than context_length ({number(model.context_length)})")
    if model.vocab_size > LARGEST_VOCABULARY:
        reading.report(
            "model.vocab_size", f"must be at most {number(LARGEST_VOCABULARY)}: token ids are stored as uint16"
        )
    elif reading.sound("tokenizer.vocab_size") and model.vocab_size < tokenizer.vocab_size:
        reading.report("model.vocab_size", f"is less than the tokenizer's {number(tokenizer.vocab_size)} pieces")


def _check_pretrain(recipe: Recipe, reading: Reading) -> None:
    train = recipe.pretrain

    def wrong(condition: bool, name: str, other: str = "") -> bool:
        return condition and reading.sound(f"pretrain.{name}", *([f"pretrain.{other}"] if other else []))

    if wrong(train.micro_batch > 0 and train.global_batch % train.micro_batch != 0, "micro_batch", "global_batch"):
        reading.report(
            "pretrain.micro_batch", f"{train.micro_batch} does not divide the global_batch of {train.global_batch}"
        )
    _check_options(recipe, reading)
    if wrong(train.warmup_steps > train.steps, "warmup_steps", "steps"):
        reading.report(
            "pretrain.warmup_steps", f"{number(train.warmup_steps)} is more than the {number(train.steps)} steps"
        )
    if train.schedule != "constant" and wrong(train.final_lr > train.peak_lr, "final_lr", "peak_lr"):
        reading.report("pretrain.final_lr", f"{number(train.final_lr)} is more than peak_lr ({number(train.peak_lr)})")
    for name in ("beta1", "beta2"):
        if wrong(getattr(train, name) >= 1, name):
            reading.report(f"pretrain.{name}", "must be less than 1")
    if train.document_mask and not recipe.tokens.bos and reading.sound("pretrain.document_mask", "tokens.bos"):
        reading.report(
            "pretrain.document_mask", "needs tokens.bos: without <s> nothing predicts the first token of a document"
        )
    if reading.sound("pretrain.phases", "pretrain.steps", "corpus.sources"):
        _check_phases(recipe, reading)


def _check_phases(recipe: Recipe, reading: Reading) -> None:
    sources, before = [source.name for source in recipe.corpus.sources], 1
    for index, phase in enumerate(recipe.pretrain.phases):
        path = f"pretrain.phases[{index}]"
        if phase.from_step > recipe.pretrain.steps:
            steps = number(recipe.pretrain.steps)
            reading.report(f"{path}.from_step", f"{number(phase.from_step)} is beyond the last of the {steps} steps")
        elif phase.from_step <= before:
            wanted = f"after step {number(before)}, where the one before begins" if index else "at step 2 or later"
            reading.report(f"{path}.from_step", f"{number(phase.from_step)}: phases follow one another; begin {wanted}")
        before = max(before, phase.from_step)
        if unknown := [name for name in phase.weights if name not in sources]:
            near = difflib.get_close_matches(unknown[0], sources, 1, 0.4)
            hint = f"did you mean {near[0]}?" if near else f"the sources are {', '.join(sources[:20])}"
            reading.report(f"{path}.weights.{unknown[0]}", f"no source of this name; {hint}")
        else:
            none = [name for name in sources if not phase.weights.get(name)]
            _check_weights(phase.weights, f"{path}.weights", (f"{path}.weights." + "{}").format, none, reading)


def _check_evaluate(recipe: Recipe, reading: Reading) -> None:
    wanted, interval = recipe.evaluate, recipe.pretrain.eval_every
    for path, values in (("shots", wanted.shots), ("suites", wanted.suites), ("during", wanted.during)):
        if reading.sound(f"evaluate.{path}") and len(set(values)) < len(values):
            reading.report(f"evaluate.{path}", "the same value is given twice")
    path = "evaluate.during_every"
    if wanted.during_every and reading.sound(path, "pretrain.eval_every"):
        if not interval:
            reading.report(path, "is given, but pretrain.eval_every is 0: there are no evaluations in between")
        elif wanted.during_every % interval:
            every = f"{number(wanted.during_every)} is no multiple of pretrain.eval_every ({number(interval)})"
            reading.report(path, f"{every}: scores are taken with an evaluation")


def _check_options(recipe: Recipe, reading: Reading) -> None:
    """The options that are off by default: what each needs, and what does nothing together."""
    train, model = recipe.pretrain, recipe.model

    def problem(condition: bool, text: str, first: str, *others: str) -> None:
        if condition and reading.sound(first, *others):
            reading.report(first, text)

    wsd = train.schedule == "wsd"
    problem(
        bool(train.decay_steps) and not wsd,
        f"belongs to schedule: wsd; a {train.schedule} schedule has none",
        "pretrain.decay_steps",
        "pretrain.schedule",
    )
    problem(
        wsd and train.warmup_steps + train.decay_steps > train.steps,
        f"with warmup_steps ({number(train.warmup_steps)}) is more than the {number(train.steps)} steps",
        "pretrain.decay_steps",
        "pretrain.steps",
        "pretrain.warmup_steps",
    )
    problem(
        bool(train.batch_warmup) and not train.batch_warmup_steps,
        "is 0; give the steps of each stage of batch_warmup",
        "pretrain.batch_warmup_steps",
        "pretrain.batch_warmup",
    )
    problem(
        bool(train.batch_warmup_steps) and not train.batch_warmup,
        "is given, but batch_warmup is empty; give the smaller batches, as in [210, 420]",
        "pretrain.batch_warmup_steps",
        "pretrain.batch_warmup",
    )
    stages = train.batch_warmup
    problem(
        [*stages, train.global_batch] != sorted([*stages, train.global_batch]),
        f"must grow, up to the global_batch of {train.global_batch}",
        "pretrain.batch_warmup",
        "pretrain.global_batch",
    )
    indivisible = [size for size in stages if train.micro_batch and size % train.micro_batch]
    problem(
        bool(indivisible),
        f"{', '.join(map(str, indivisible))} cannot be divided by the micro_batch of {train.micro_batch}",
        "pretrain.batch_warmup",
        "pretrain.micro_batch",
    )
    problem(
        len(stages) * train.batch_warmup_steps >= train.steps and bool(stages),
        f"takes {number(len(stages) * train.batch_warmup_steps)} of the {number(train.steps)} steps",
        "pretrain.batch_warmup",
        "pretrain.batch_warmup_steps",
        "pretrain.steps",
    )
    problem(
        bool(train.init_from) and bool(train.branch_from),
        "and branch_from are both given; branch_from goes on with a run's own steps, init_from begins with weights",
        "pretrain.init_from",
        "pretrain.branch_from",
    )
    problem(train.average_decay >= 1, "must be less than 1", "pretrain.average_decay")
    problem(train.muon_momentum >= 1, "must be less than 1", "pretrain.muon_momentum")
    problem(
        bool(model.width_base) and model.tied_embeddings,
        "needs an output head of its own: with tied_embeddings one matrix would need two initial sizes and two rates",
        "model.width_base",
        "model.tied_embeddings",
    )

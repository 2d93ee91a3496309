"""`xmodel init`: a commented starter recipe for one's own text, sized for the machine and the time at hand.

The choices are a page of arithmetic, and the recipe shows it: compute = hours x speed; about 20 tokens for a parameter
(Hoffmann et al. 2022, arXiv 2203.15556); at most about 4 passes over the text (Muennighoff et al. 2023, arXiv
2305.16264: up to four epochs are nearly as good as fresh text, beyond 16 hardly anything is gained).
"""

from __future__ import annotations

import json
import math
import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from xmodel.errors import UserError
from xmodel.model.counts import flops_per_token, parameters
from xmodel.recipe.checks import RUN_NAME
from xmodel.recipe.presets import PRESETS, Preset, expand
from xmodel.recipe.settings import Model
from xmodel.recipe.summary import short
from xmodel.survey import Surveyed, survey

TOKENS_PER_PARAMETER = 20
EPOCHS, MOST_EPOCHS = 4, 16
TRAINING_SHARE = 0.9  # of the hours; the rest is for compiling, evaluations and checkpoints
# Share of the peak (a GPU's data sheet, a CPU's matrix product) that training reaches. Measured: 0.24 and 0.25 on two
# CPU cores at hidden 192 and 256; published runs of 1B models reach 0.4 to 0.5 on GPUs, smaller models less.
UTILISATION = {"cpu": 0.25, "cuda": 0.35}
STATE_BYTES = 16  # for a parameter: float32 weight, gradient and AdamW's two moments
LEAST_BYTES = 10_000
LEAST_DOCUMENTS = 60  # fewer, and a share of them might be none
# Pieces that a text of so many bytes can fill with pieces that occur often enough to be learnt.
VOCABULARY = (
    (100_000, 512),
    (500_000, 1024),
    (2e6, 2048),
    (10e6, 4096),
    (100e6, 8192),
    (1e9, 16_384),
    (math.inf, 32_000),
)
# Bytes of text in a token. 4096 to 16,384 pieces: measured on 4 MB each of English documentation and modern Chinese
# (both within 10 %, English at 16,384 and the other rows continued by hand).
BYTES_PER_TOKEN = {512: 1.7, 1024: 2.1, 2048: 2.5, 4096: 2.9, 8192: 3.2, 16_384: 3.6, 32_000: 4.0}
COVERAGES = (0.9999, 0.9995, 0.999, 0.995, 0.99, 0.98)  # SentencePiece takes no less
FIXED_PIECES = 259  # control and byte pieces
SHAPES = [
    Preset(3, 4, 1, 128),
    Preset(4, 6, 2, 192),
    Preset(6, 8, 2, 256),
    *(PRESETS[name] for name in ("micro", "tiny", "small", "medium", "large", "xl", "3b", "7b", "13b", "34b", "70b")),
]
CONTEXTS = ((256, 256), (512, 512), (768, 1024), (1536, 2048), (10**9, 4096))  # hidden size up to, context
# Parameters up to, peak learning rate. Published: 6e-4 at 1.2B (Xmodel-LM), 3e-4 at 7B and 13B, 1.5e-4 above.
RATES = ((3e6, 2e-3), (3e7, 1.5e-3), (1.5e8, 1e-3), (3e9, 6e-4), (2e10, 3e-4), (math.inf, 1.5e-4))


@dataclass(frozen=True)
class Machine:
    """What training runs on."""

    device: str  # cpu or cuda
    count: int  # GPUs; 1 for a CPU
    peak: float  # FLOP/s of one device at `precision`
    memory: float  # bytes of one device
    precision: str  # bf16 or fp32, whichever is faster
    description: str


@dataclass(frozen=True)
class Plan:
    """The choices, and what they follow from."""

    model: Model
    coverage: float
    text_tokens: float  # in one pass over the training text
    tokens: float  # wished for in training
    compute: float  # FLOP in the time given
    global_batch: int
    micro_batch: int
    steps: int
    hours: float  # that the training is expected to take
    holdout: float


def starter_recipe(
    files: list[str], hours: float, name: str = "mine", machine: Machine | None = None, folder: Path | None = None
) -> str:
    """The text of a recipe for `files`, which `load_recipe` takes as it is.

    Args:
        files: files, folders or patterns of one's own text.
        hours: time for the training.
        name: of the run.
        machine: what it will run on; measured if not given.
        folder: where the recipe will lie; paths below it are written relative to it.

    Raises:
        UserError: hours or name that make no sense, or text that cannot be used (see `survey`).
    """
    if not (math.isfinite(hours) and 0 < hours <= 24 * 365):
        raise UserError(f"--hours {hours:g}: give the time for training in hours, more than 0 and at most a year")
    if not RUN_NAME.fullmatch(name):
        raise UserError(f"--name {name}: cannot name a folder; use letters, digits, `.`, `-` and `_`")
    if not files:
        raise UserError("--text: no files given")
    sources = survey(files)
    total = sum(source.text_bytes for source in sources)
    if total < LEAST_BYTES:
        raise UserError(
            f"only {total:,.0f} bytes of text; a model needs at least {LEAST_BYTES:,}, better some millions"
        )
    machine = machine or measure_machine()
    return write(sources, plan(sources, hours, machine), hours, name, machine, folder or Path.cwd())


def measure_machine() -> Machine:
    """Count the GPUs, or time matrix products on the CPU (about a second)."""
    import torch

    from xmodel.pretrain.flops import peak_flops

    if torch.cuda.is_available():
        device = torch.device("cuda")
        peak, source = peak_flops(device, torch.bfloat16)
        count, facts = torch.cuda.device_count(), torch.cuda.get_device_properties(0)
        return Machine("cuda", count, peak, facts.total_memory, "bf16", f"{count} x {facts.name} ({source})")
    speeds = {
        name: peak_flops(torch.device("cpu"), dtype)[0]
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    precision = max(speeds, key=lambda name: speeds[name])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    what = f"{torch.get_num_threads()} CPU cores (matrix products measured in {precision})"
    return Machine("cpu", 1, speeds[precision], memory, precision, what)


# ── The choices ──────────────────────────────────────────────────────────────────────────────────────────────────────


def plan(sources: list[Surveyed], hours: float, machine: Machine) -> Plan:
    """Vocabulary, shape, tokens, batch and schedule. Pure arithmetic."""
    total = sum(source.text_bytes for source in sources)
    documents = sum(source.documents for source in sources)
    vocab_size, coverage = choose_vocabulary(sources, total)
    holdout = 0.0 if documents < LEAST_DOCUMENTS else round(min(max(0.01, 20 / documents, 1e5 / total), 0.1), 2)
    text_tokens = total / BYTES_PER_TOKEN[vocab_size] * (1 - holdout)
    speed = machine.peak * machine.count * UTILISATION[machine.device]
    compute = speed * hours * 3600 * TRAINING_SHARE
    model, tokens = choose_shape(vocab_size, text_tokens, compute, machine.memory)

    flops, _ = flops_per_token(model, model.context_length)
    total_parameters = parameters(model)["total"]
    largest = 2**19 if total_parameters < 5e8 else 2**21  # tokens in a step; the published run has 3.4M
    wished = min(max(tokens / 2000, 8 * model.context_length), largest) / model.context_length
    each = 2 ** max(0, round(math.log2(wished / machine.count)))  # sequences for each device
    global_batch = each * machine.count
    steps = max(1, round(tokens / (global_batch * model.context_length)))
    return Plan(
        model=model,
        coverage=coverage,
        text_tokens=text_tokens,
        tokens=tokens,
        compute=compute,
        global_batch=global_batch,
        micro_batch=min(each, choose_micro_batch(model, total_parameters, machine)),
        steps=steps,
        hours=steps * global_batch * model.context_length * flops / speed / 3600,
        holdout=holdout,
    )


def choose_vocabulary(sources: list[Surveyed], total: float) -> tuple[int, float]:
    """Vocabulary size by the amount of text, large enough for its characters; and the coverage of characters."""
    characters: dict[str, float] = {}
    for source in sources:
        scale = source.text_bytes / max(1, sum(source.characters.values()))
        for character, count in source.characters.items():
            characters[character] = characters.get(character, 0.0) + count * scale
    counts, everything = sorted(characters.values(), reverse=True), sum(characters.values())

    def needed(coverage: float) -> int:
        covered, number = 0.0, 0
        while number < len(counts) and covered < coverage * everything:
            covered, number = covered + counts[number], number + 1
        return number + FIXED_PIECES

    sizes = [size for _, size in VOCABULARY]
    least = next(size for limit, size in VOCABULARY if total < limit)
    size = next((size for size in sizes if size >= least and needed(COVERAGES[-1]) <= 0.75 * size), sizes[-1])
    return size, next((coverage for coverage in COVERAGES if needed(coverage) <= 0.75 * size), COVERAGES[-1])


def choose_shape(vocab_size: int, text_tokens: float, compute: float, memory: float) -> tuple[Model, float]:
    """The largest shape for which both the time and the text give 20 tokens a parameter, and its training tokens."""
    best: tuple[Model, float] | None = None
    for shape in SHAPES:
        context = next(context for hidden, context in CONTEXTS if shape.hidden <= hidden)
        context = min(context, max(64, 2 ** int(math.log2(text_tokens / 64))))  # a text has some windows at least
        model = expand(Model(**shape._asdict(), context_length=context), vocab_size)
        counts = parameters(model)
        affordable = compute / flops_per_token(model, context)[0]
        wanted = TOKENS_PER_PARAMETER * counts["matmul"]
        enough = min(affordable, EPOCHS * text_tokens) >= wanted and STATE_BYTES * counts["total"] <= memory / 2
        if best is None or enough:
            most = max(EPOCHS * text_tokens, min(MOST_EPOCHS * text_tokens, wanted))
            best = model, min(affordable, most)
    assert best is not None
    return best


def choose_micro_batch(model: Model, total_parameters: int, machine: Machine) -> int:
    """A power of two of sequences whose activations fit; more than 8,192 tokens gain nothing on a CPU."""
    activations = 34 * model.layers * model.hidden + 8 * model.vocab_size  # bytes a token, generously
    room = 0.6 * (machine.memory - STATE_BYTES * total_parameters) / (activations * model.context_length)
    most = 8192 if machine.device == "cpu" else 65_536
    return 2 ** int(math.log2(max(1, min(room, most / model.context_length))))


def shares(sizes: list[float]) -> list[float]:
    """Weights in proportion to the sizes: at most 6 decimals, none zero, summing to exactly 1."""
    total = sum(sizes)
    parts = [max(1, int(size / total * 1_000_000)) for size in sizes]
    parts[parts.index(max(parts))] += 1_000_000 - sum(parts)
    return [part / 1_000_000 for part in parts]


# ── The text ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def write(sources: list[Surveyed], chosen: Plan, hours: float, name: str, machine: Machine, folder: Path) -> str:
    """The recipe's text; every choice stands beside its reason."""
    total, documents = sum(s.text_bytes for s in sources), sum(s.documents for s in sources)
    chinese = sum(s.chinese * s.text_bytes for s in sources) / total
    weights = shares([source.text_bytes for source in sources])
    parts = [
        _head(sources, total, documents, chinese, hours, name, machine),
        ["corpus:"],
        _comment(
            "weight: share of the training samples, here in proportion to size. Raise what matters; keep the sum at 1.",
            2,
        ),
        ["  sources:"],
        *(_source(source, weight, folder) for source, weight in zip(sources, weights, strict=True)),
        _holdout(chosen, documents, chinese),
        _tokenizer(chosen, total),
        _model(chosen, hours, machine),
        _pretrain(chosen, hours, machine),
        _rest(sources),
    ]
    return "\n".join(line.rstrip() for part in parts for line in part) + "\n"


def _comment(text: str, indent: int = 0) -> list[str]:
    start = " " * indent + "# "
    return textwrap.wrap(text, 110, initial_indent=start, subsequent_indent=start, break_on_hyphens=False)


def _noted(setting: str, note: str) -> str:
    """A line with its comment, the comments of several such lines below each other."""
    return f"{setting:34}# {note}"


def _head(
    sources: list[Surveyed], total: float, documents: float, chinese: float, hours: float, name: str, machine: Machine
) -> list[str]:
    sampled = " (estimated from a sample)" if any(source.sampled for source in sources) else ""
    lines = _comment(
        f"Starter recipe made by `xmodel init` for {_bytes(total)} of text in {documents:,.0f} documents{sampled}, "
        f"{1 - chinese:.0%} English (or other) and {chinese:.0%} Chinese; {_time(hours)} on {machine.description}."
    )
    lines += [
        "#",
        f"#   xmodel recipe check {name}.yaml      what it amounts to",
        f"#   xmodel run {name}.yaml               train, score, export; repeat it to go on after a stop",
    ]
    if total < 5e6:
        little = "This is little text for a language model: expect phrases of the text rather than fluent language."
        lines += ["#", *_comment(f"{little} Some tens of megabytes make a difference.")]
    if machine.count > 1:
        lines += ["#", f"# Written for {machine.count} GPUs: `xmodel run` starts a process on each."]
    return [*lines, "", f"name: {_quote(name)}", "seed: 0", ""]


def _source(source: Surveyed, weight: float, folder: Path) -> list[str]:
    language = "zh" if source.chinese >= 0.98 else "en" if source.chinese <= 0.02 else "auto"
    sampled = ", from a sample" if source.sampled else ""
    size = f"{_bytes(source.text_bytes)} in {source.documents:,.0f} documents, {source.chinese:.0%} Chinese{sampled}"
    return [
        _noted(f"    - name: {_quote(source.name)}", size),
        f"      reader: {source.reader}",
        f"      paths: [{_quote(_relative(source.path, folder))}]",
        *([f"      text_field: {_quote(source.text_field)}"] if source.reader == "jsonl" else []),
        _noted("      language: auto", "decided for each document")
        if language == "auto"
        else f"      language: {language}",
        f"      weight: {f'{weight:.6f}'.rstrip('0').rstrip('.')}",
    ]


def _holdout(chosen: Plan, documents: float, chinese: float) -> list[str]:
    if chosen.holdout:
        return [_noted(f"  holdout: {chosen.holdout:g}", "share of the documents kept for the validation loss")]
    part = "zh" if chinese > 0.5 else "en"
    few = "1 document is" if documents < 2 else f"{documents:,.0f} documents are"
    why = (
        f"{few} too few to keep a share aside, so the validation text is the sandbox's: its loss shows little about "
        "your text. Cut the text into more documents (a chapter or article each, one JSON line each) and set holdout: "
        f"0.05 instead; from {LEAST_DOCUMENTS} documents on `xmodel init` does so."
    )
    validation = f"{{name: sandbox-validation, reader: sandbox, paths: [{part}], language: {part}, documents: 200}}"
    return [*_comment(why, 2), "  holdout: 0", "  validation:", f"    - {validation}"]


def _tokenizer(chosen: Plan, total: float) -> list[str]:
    size = chosen.model.vocab_size
    why = f"{_bytes(total)} of text has examples enough for so many pieces; about {BYTES_PER_TOKEN[size]:g} bytes each."
    lines = [
        "",
        "tokenizer:",
        *_comment(why, 2),
        f"  vocab_size: {size}",
        *_comment("Share of the characters that have a piece of their own; the rarest are spelt in bytes.", 2),
        f"  character_coverage: {chosen.coverage:g}",
    ]
    return [*lines, _noted("  sample_bytes: 50M", "enough, and kind to the memory")] if total > 50e6 else lines


def _model(chosen: Plan, hours: float, machine: Machine) -> list[str]:
    model = chosen.model
    counts, (flops, _) = parameters(model), flops_per_token(model, model.context_length)
    wanted, affordable = short(TOKENS_PER_PARAMETER * counts["matmul"]), short(chosen.compute / flops)
    suffice = ", or the smallest of all if none does" if model.hidden == SHAPES[0].hidden else ""
    why = (
        f"{counts['total']:,} parameters, {counts['matmul']:,} of them in matrix products; {TOKENS_PER_PARAMETER} "
        f"tokens for each of these (Hoffmann et al. 2022, arXiv 2203.15556) are {wanted}. "
        f"The time gives {hours:g} h x {TRAINING_SHARE:.0%} x {machine.count} x {machine.peak:.2g} FLOP/s x "
        f"{UTILISATION[machine.device]:.0%} of that peak (assumed) = {chosen.compute:.2g} FLOP, and at {flops:.2g} "
        f"FLOP a token that is {affordable} tokens. {EPOCHS} passes over the text are "
        f"{short(EPOCHS * chosen.text_tokens)}. The shape is the largest for which both suffice{suffice}."
    )
    shape = [f"  {key}: {getattr(model, key)}" for key in Preset._fields]
    return [
        "",
        *_comment(why),
        "model:",
        *([f"  preset: {model.preset}"] if model.preset else shape),
        f"  context_length: {model.context_length}",
    ]


def _pretrain(chosen: Plan, hours: float, machine: Machine) -> list[str]:
    model, steps = chosen.model, chosen.steps
    counts = parameters(model)
    rate = next(rate for limit, rate in RATES if counts["total"] <= limit)
    step_tokens = chosen.global_batch * model.context_length
    tokens = steps * step_tokens
    passes = f"{tokens / chosen.text_tokens:.1f} passes over {short(chosen.text_tokens)} tokens of text"
    why = (
        f"{steps:,} steps x {step_tokens:,} tokens = {short(tokens)} tokens: {passes}, {tokens / counts['matmul']:.2g} "
        f"tokens a parameter. Up to {EPOCHS} passes are nearly as good as fresh text, more than {MOST_EPOCHS} gain "
        "hardly anything (Muennighoff et al. 2023, arXiv 2305.16264)."
    )
    if chosen.hours < 0.8 * TRAINING_SHARE * hours:
        limit = f"The text is the limit, not the time: about {_time(chosen.hours)} of the {_time(hours)} will do."
    else:
        limit = f"Expected: about {_time(chosen.hours)} of the {_time(hours)}; evaluations and start-up take the rest."
        if tokens < 5 * counts["matmul"]:
            limit += " That is hardly any training: give it more hours."
    return [
        "",
        *_comment(why),
        *_comment(limit),
        "pretrain:",
        f"  steps: {steps}",
        _noted(
            f"  global_batch: {chosen.global_batch}", f"sequences of {model.context_length} tokens, over all devices"
        ),
        _noted(f"  micro_batch: {chosen.micro_batch}", "at once on a device; halve it if memory runs out"),
        _noted(f"  peak_lr: {_float(rate)}", "smaller models bear higher rates; lower it if the loss jumps"),
        f"  final_lr: {_float(rate / 10)}",
        f"  warmup_steps: {min(2000, max(1, steps // 20))}",
        f"  precision: {machine.precision}",
        f"  eval_every: {max(25, steps // 20)}",
        f"  eval_tokens: {max(10_000, int(min(1e6, tokens / 100)))}",
        f"  save_every: {max(50, steps // 10)}",
    ]


def _rest(sources: list[Surveyed]) -> list[str]:
    why = (
        "Loss and bits per byte on held-out text. The sandbox's question sets ask about a world that your text does "
        "not teach; add `sandbox` and `translation` here if you add sandbox sources above."
    )
    return [
        "",
        "evaluate:",
        *_comment(why, 2),
        "  suites: [perplexity]",
        "  limit_during: 0",
        "",
        "export:",
        _noted("  licence: other", "what your text's licence allows; it goes into the model card"),
        "",
        "report:",
        f"  prompts: [{', '.join(_quote(prompt) for prompt in _prompts(sources))}]",
    ]


def _prompts(sources: list[Surveyed]) -> list[str]:
    """Beginnings of documents: four words, or six Han characters."""
    starts = []
    for opening in (opening for source in sources for opening in source.openings[:2]):
        words = "".join(character for character in opening if character.isprintable()).split()
        if words:
            starts.append(" ".join(words[:4]) if len(words) > 3 else words[0][:6])
    return list(dict.fromkeys(starts))[:4] or ["The"]


def _relative(path: str, folder: Path) -> str:
    relative = os.path.relpath(path, folder.absolute())
    chosen = path if relative.startswith("..") else relative
    try:
        chosen.encode()
    except UnicodeEncodeError:
        raise UserError(f"{chosen!r}: the file's name is not UTF-8; rename it") from None
    return chosen


def _quote(text: str) -> str:
    """Text as a YAML scalar: bare when any YAML reader takes it for text, else a JSON string, which is YAML too."""
    words = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")
    bare = re.fullmatch(r"[A-Za-z][\w./-]*", text, re.ASCII) and text.lower() not in words
    return text if bare else json.dumps(text, ensure_ascii=not text.isprintable())


def _float(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _bytes(count: float) -> str:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} bytes"


def _time(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.3g} days"
    number, unit = (f"{hours:.2g}", "hour") if hours >= 1 else (str(max(1, round(hours * 60))), "minute")
    return f"{number} {unit}" if number == "1" else f"{number} {unit}s"

"""The parts of the page that are words and tables: recipe, tokenizer, samples, export and machine."""

from __future__ import annotations

from typing import Any

from xmodel.report import markup
from xmodel.report.markup import Html, coloured, element, facts, folded, join, missing, paragraph, table
from xmodel.report.numbers import (
    DASH,
    LANGUAGES,
    count,
    decimal,
    duration,
    known,
    language,
    number,
    scaled,
    share,
    size,
)
from xmodel.report.read import Run, language_of, parameters, planned_tokens

# As `tokenizer/compare_output.py` has them, which this room does not know; a test compares.
PUBLISHED_COMPRESSION = (
    ("LLaMA 2", 32_000, 0.7524),
    ("InternLM 2", 103_168, 0.4124),
    ("Baichuan 2", 125_696, 0.4103),
    ("Xmodel-LM", 32_000, 0.3841),
)
COMPRESSION_NOTE = (
    "Fewer is better. The published figures (arXiv 2406.02856) are of a text that was not published, whose mixture of "
    "languages is not known: they show the order of things, and do not compare with the figures above."
)
TERMS = {"cpu": "CPU", "gpus": "GPUs", "memory_gib": "Memory, GiB", "vocab_size": "Pieces"}


def recipe(run: Run) -> Html:
    """Model shape, parameters, tokens, batch and schedule; the whole recipe folded away."""
    if not run.recipe:
        return missing("The recipe", "xmodel run RECIPE")
    model, train = run.recipe.get("model") or {}, run.recipe.get("pretrain") or {}
    shape = {name: count(value) for name, value in model.items()}
    sizes, tokens = parameters(run.recipe), planned_tokens(run)
    pairs: list[tuple[object, object]] = []
    if sizes:
        heads = f"{shape['heads']} query and {shape['kv_heads']} key/value heads"
        family = "Qwen3" if model.get("qk_norm") else "Llama"
        embeddings = "tied" if model.get("tied_embeddings") else "untied"
        pairs += [
            ("Model", f"{family}: {shape['layers']} layers, width {shape['hidden']}, SwiGLU {shape['ffn']}, {heads}"),
            ("Vocabulary", f"{shape['vocab_size']} pieces, {embeddings} embeddings"),
            ("Parameters", f"{count(sizes[0])}, of them {count(sizes[1])} outside the embeddings"),
        ]
    if tokens:
        ratio = f", {decimal(tokens / sizes[0], 1)} per parameter" if sizes else ""
        batch = f"{count(train['global_batch'])} sequences of {shape['context_length']} tokens"
        pairs += [
            ("Batch", f"{batch}, {count(tokens / train['steps'])} tokens a step"),
            ("Training", f"{count(train['steps'])} steps, {scaled(tokens)} tokens{ratio}"),
        ]
    if train:
        falls = (
            f"{train.get('schedule')} to {train.get('final_lr')}" if train.get("schedule") != "constant" else "constant"
        )
        method = "Muon and AdamW" if train.get("optimizer") == "muon" else "AdamW"
        decays = f"β {train.get('beta1')} and {train.get('beta2')}, weight decay {train.get('weight_decay')}"
        pairs += [
            (
                "Learning rate",
                f"{count(train.get('warmup_steps'))} steps of warm-up to {train.get('peak_lr')}, then {falls}",
            ),
            ("Optimizer", f"{method}, {decays}, gradient norm clipped at {train.get('clip')}"),
            ("Arithmetic", f"{train.get('precision')}, compile {train.get('compile')}, device {train.get('device')}"),
        ]
    pairs.append(("Seed", run.recipe.get("seed", DASH)))
    return join([facts(pairs), folded("The whole recipe", element("pre", run.recipe_text.strip()))])


def tokenizer(run: Run) -> Html:
    """Whatever tokenizer-stats.json holds: single figures as a list, figures by language as a table."""
    if not run.tokenizer:
        return missing("The tokenizer", "xmodel tokenizer")
    single = [(title, value) for title, value in run.tokenizer.items() if not isinstance(value, dict)]
    grouped = {title: value for title, value in run.tokenizer.items() if isinstance(value, dict)}
    parts = [facts((_words(title), _value(title, value)) for title, value in single)]
    if grouped:
        columns = list(dict.fromkeys(key for group in grouped.values() for key in group))
        rows = [[_words(title), *(_value(key, group.get(key)) for key in columns)] for title, group in grouped.items()]
        parts.append(table(["", *(f"#{_words(column)}" for column in columns)], rows))
    parts.append(_compression(run))
    command = element("code", f"xmodel tokenizer compare runs/{run.name} OTHER --text FILES --published")
    parts.append(paragraph("Beside other tokenizers, on the same text: ", command, class_="note"))
    return join(parts)


def _compression(run: Run) -> Html:
    """Tokens per character and per byte of the held-out documents, and what was published of another text."""
    held_out = run.tokens.get("validation") or {}
    if not held_out:
        return Html("")
    controls = 2 if run.tokens.get("bos") else 1  # of each document; they are no part of its text
    counts = {
        code: {"tokens": number(entry.get("tokens")) - controls * number(entry.get("documents"))}
        | {key: number(entry.get(key)) for key in ("documents", "characters", "bytes")}
        for code, entry in sorted(held_out.items())
    }
    whole = {
        key: sum(entry[key] for entry in counts.values()) for key in ("tokens", "documents", "characters", "bytes")
    }
    rows = []
    for title, entry in [*((coloured(code, language(code)), entry) for code, entry in counts.items()), ("All", whole)]:
        rates = [decimal(share(entry["tokens"], entry[key]), 4) for key in ("characters", "bytes")]
        sizes = [count(entry[key]) for key in ("documents", "characters", "bytes", "tokens")]
        rows.append([title, *rates, *sizes])
    heads = ["Held-out documents", "#Tokens per character", "#Tokens per byte"]
    shown = table([*heads, "#Documents", "#Characters", "#Bytes", "#Tokens"], rows, totals=1)
    published = [[title, count(pieces), decimal(rate, 4)] for title, pieces, rate in PUBLISHED_COMPRESSION]
    beside = table(["Published, of another text", "#Pieces", "#Tokens per character"], published)
    return join([element("h3", "Compression"), shown, beside, paragraph(COMPRESSION_NOTE, class_="note")])


def samples(run: Run) -> Html:
    """What the model writes after each prompt, and some of its translations."""
    if not run.samples and not run.translations:
        return missing("Samples", "xmodel evaluate")
    parts = []
    if run.samples:
        parts.append(paragraph("The prompt is in bold, the rest is the model’s.", class_="note"))
    for sample in run.samples:
        code = sample["language"]
        text = element("p", element("b", sample["prompt"]), sample.get("text", ""), lang=code)
        parts.append(element("blockquote", element("small", coloured(code, language(code))), text, class_=code))
    if run.translations:
        fewest = min(sample.get("shots") or 0 for sample in run.translations)
        rows = [
            [_spoken(sample.get(part)) for part in ("source", "output", "reference")]
            for sample in run.translations
            if (sample.get("shots") or 0) == fewest
        ]
        columns = ["Source", "The model’s translation", "Reference"]
        parts += [element("h3", f"Greedy translations, {fewest}-shot"), table(columns, rows, class_="prose")]
    return join(parts)


def _spoken(text: Any) -> Html:
    return element("span", text or DASH, lang=language_of(str(text)))


def export(run: Run) -> Html:
    """What stands in export/hf."""
    if not run.export:
        return missing("The export", "xmodel export hf")
    whole = f": {size(sum(amount for _, amount in run.export))} in {len(run.export)} files."
    told = paragraph("The model as Hugging Face transformers loads it stands in ", markup.name("export/hf"), whole)
    rows = [[markup.name(path), count(amount)] for path, amount in run.export]
    return join([told, folded("Files", table(["File", "#Bytes"], rows))])


def machine(run: Run) -> Html:
    """Hardware, versions and commands as run.json holds them, and the time that each stage took."""
    if not run.info:
        return missing("run.json", "xmodel run RECIPE")
    single = {title: value for title, value in run.info.items() if not isinstance(value, dict | list)}
    parts = [facts((_words(title), _value(title, value)) for title, value in single.items())]
    for title, group in run.info.items():
        if isinstance(group, dict):
            terms = ((key if title == "versions" else _words(key), _value(key, value)) for key, value in group.items())
            parts += [element("h3", _words(title)), facts(terms)]
    done = [entry | {"stage": title} for title, entry in run.stages.items() if entry.get("status") == "done"]
    if done:
        done.sort(key=lambda entry: str(entry.get("finished")))
        rows = [[entry["stage"], duration(entry.get("seconds")), entry.get("finished", DASH)] for entry in done]
        parts += [element("h3", "Stages"), table(["Stage", "#Time taken", "#Finished"], rows)]
    sessions = [[each.get("started"), element("code", each.get("command"))] for each in run.info.get("sessions") or []]
    if len(sessions) > 1:
        parts.append(folded(f"{len(sessions)} sessions", table(["Started", "Command"], sessions)))
    return join(parts)


def _words(key: str) -> str:
    """A key of a JSON file as a term."""
    return LANGUAGES.get(key) or TERMS.get(key, str(key).replace("_", " ").capitalize())


def _value(key: str, value: Any) -> object:
    """A value of a JSON file: lists as words, bytes with a unit, commands and revisions in code face."""
    if key in ("command", "code_revision"):
        return element("code", value)
    if isinstance(value, list):
        return ", ".join(map(str, value)) or DASH
    if isinstance(value, dict):
        return ", ".join(f"{inner} {content}" for inner, content in value.items()) or DASH
    if key.endswith("bytes"):
        return size(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return count(value) if known(value) and key != "seed" else DASH if value is None else value

"""The page: title, summary in numbers, and the sections in the order of the flow."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from statistics import median

from xmodel.report import charts, corpus, markup, progress, scores, sections
from xmodel.report.markup import Html, coloured, element, escaped, join, missing, paragraph
from xmodel.report.numbers import count, decimal, duration, known, language, number, scaled
from xmodel.report.read import Run, parameters, read

# Nothing may be loaded from anywhere and no script runs, whatever the text of a sample or a name holds.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def build_report(run_folder: Path) -> str:
    """The run in `run_folder` as one HTML page without external parts. The same files give the same bytes.

    Stages that have not run are said to be missing, so the page of a half-done run is whole too.

    Raises:
        UserError: `run_folder` is not a directory.
        MachineError: one of its files is damaged.
    """
    run = read(run_folder)
    parts = {
        "Recipe": (bool(run.recipe), sections.recipe(run)),
        "Corpus": (bool(run.funnel), corpus.corpus(run)),
        "Tokenizer": (bool(run.tokenizer), sections.tokenizer(run)),
        "Training": (bool(run.train or run.validation), training(run)),
        "Scores": (bool(run.results or run.others or run.scores), join([scores.final(run), progress.during(run)])),
        "Samples": (bool(run.samples), sections.samples(run)),
        "Export": (bool(run.export), sections.export(run)),
        "Machine": (bool(run.info), sections.machine(run)),
    }
    links = [
        element("a", title, href=f"#{title.lower()}", class_="" if done else "undone")
        for title, (done, _) in parts.items()
    ]
    body = [
        element(
            "header",
            element("small", "Xmodel-LM run"),
            element("h1", run.name),
            summary(run),
            element("nav", join(links, " ")),
        ),
        *(element("section", element("h2", title), content, id=title.lower()) for title, (_, content) in parts.items()),
    ]
    style = files("xmodel.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(run.name)} – Xmodel-LM run</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{join(body)}\n</main>\n</body>\n</html>\n"
    )


def summary(run: Run) -> Html:
    """The run in one paragraph of numbers; what is not known yet is left out."""
    sentences: list[object] = []
    sizes = parameters(run.recipe)
    model = f"A bilingual model of {scaled(sizes[0])} parameters" if sizes else "A bilingual model"
    if run.train:
        last, steps = run.train[-1], run.setting("pretrain", "steps")
        unfinished = known(steps) and last["step"] < steps
        of = f" of {count(steps)}" if unfinished else ""
        seed = f" from seed {run.recipe['seed']}" if "seed" in run.recipe else ""
        sentences.append(
            f"{model}, pretrained{seed} for {count(last['step'])}{of} steps on {scaled(last.get('tokens'))} tokens."
        )
    else:
        sentences.append(f"{model}; pretraining has not run yet.")
    if run.funnel:
        total = run.funnel.get("total", {})
        kept, of = count(corpus.amount(total, "kept")), count(corpus.amount(total, "read"))
        sentences.append(f"Its corpus kept {kept} of {of} documents from {len(run.funnel.get('sources', {}))} sources.")
    ends = []
    for tongue, records in run.validation.items():
        values = [value for value in charts.column(records, "bits_per_byte") if known(value)]
        if values:
            fell = f"{decimal(values[0], 2)} to " if len(values) > 1 else ""
            ends.append(join([coloured(tongue, language(tongue)), f" {fell}{decimal(values[-1], 2)}"], ""))
    if ends:
        sentences.append(join(["Held-out bits per byte: ", join(ends, ", "), "."], ""))
    sentences += scores.told(run)
    return paragraph(join(sentences, " "), class_="summary")


def training(run: Run) -> Html:
    """First and last loss in a table, then the curves."""
    if not run.train and not run.validation:
        return missing("Pretraining", "xmodel pretrain")
    parts: list[Html] = []
    if run.train:
        first, last = run.train[0], run.train[-1]
        planned = count(run.setting("pretrain", "steps"))
        told = [
            f"Step {count(last['step'])} of {planned}, {count(last.get('tokens'))} tokens.",
            f"Training loss {decimal(number(first.get('loss')))} at step {count(first['step'])}, "
            f"{decimal(number(last.get('loss')))} at the last.",
        ]
        speeds = [value for value in charts.column(run.train, "tokens_per_second") if known(value)]
        seconds = sum(value for value in charts.column(run.train, "seconds") if known(value))
        if speeds:
            told.append(f"{duration(seconds)} of training steps, {scaled(median(speeds))} tokens per second (median).")
        bad = sum(not known(record.get("loss")) for record in run.train)
        if bad:
            told.append(f"{count(bad)} logged {'step has' if bad == 1 else 'steps have'} no finite loss.")
        parts.append(paragraph(" ".join(told)))
    rows = []
    for tongue, records in run.validation.items():
        ends = [records[0], records[-1]]
        figures = [decimal(number(record.get(key))) for key in ("loss", "bits_per_byte") for record in ends]
        rows.append([coloured(tongue, language(tongue)), count(ends[1]["step"]), *figures])
    if rows:
        heads = [f"#{measure}, {end}" for measure in ("Loss", "Bits per byte") for end in ("first", "last")]
        parts.append(markup.table(["Validation", "#Last step", *heads], rows))
    parts.append(element("div", charts.training(run), class_="figures"))
    return join(parts)

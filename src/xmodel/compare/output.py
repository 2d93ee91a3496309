"""What `compare` found, as tables for a terminal and as a drawing."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from xmodel.console import table
from xmodel.files import atomic_write, check_drawing

# Told apart by those who do not see red and green (Okabe and Ito 2008, "Color universal design").
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#f0e442", "#000000", "#999999")
PANELS = (
    ("decode_tokens_per_second", "Decode, tokens/s (higher is better)", 1.0),
    ("prefill_tokens_per_second", "Prefill, tokens/s (higher is better)", 1.0),
    ("first_token_seconds", "Time to first token, ms (lower is better)", 1e3),
    ("peak_bytes", "Memory at its peak, GB (lower is better)", 1e-9),
)


def tables(found: dict[str, Any]) -> str:
    """Sizes, speeds and training of every subject; the settings stand beside them."""
    parts = [_models(found), _cells(found)]
    if found["settings"]["train"]:
        parts.append(_training(found))
    return "\n\n".join([*(part for part in parts if part), _notes(found)])


def _label(subject: dict[str, Any], found: dict[str, Any]) -> str:
    cut = found["settings"]["layers"]
    return subject["name"] + (f" (cut to {_plural(subject.get('layers', cut), 'layer')})" if cut else "")


def _plural(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _models(found: dict[str, Any]) -> str:
    lengths = sorted({int(length) for one in found["subjects"] for length in one.get("kv_bytes_at", {})})
    rows = []
    for one in found["subjects"]:
        if "parameters" not in one:
            rows.append(
                [_label(one, found), one["engine"], one.get("error", "not measured"), *[""] * (3 + len(lengths))]
            )
            continue
        kv = [f"{one['kv_bytes_at'][str(length)] / 1e6:.1f}" for length in lengths]
        size = [f"{one['parameters']:,}", f"{one['weight_bytes'] / 1e9:.3f}", f"{one['kv_bytes_per_token'] / 1024:.1f}"]
        rows.append([_label(one, found), one["engine"], *size, *kv, one["weights"]])
    headers = ["model", "engine", "parameters", "weights GB", "KV KiB/token"]
    return table([*headers, *(f"KV MB at {length:,}" for length in lengths), "weights"], rows)


def _cells(found: dict[str, Any]) -> str:
    settings, rows = found["settings"], []
    base = found["subjects"][0]
    for place, (batch, context) in enumerate(settings["cells"]):
        for one in found["subjects"]:
            cell = one["cells"][place]
            where = [str(batch), f"{context:,}", str(settings["new_tokens"]), _label(one, found), one["engine"]]
            if "error" in cell:
                rows.append([*where, cell["error"], *[""] * 5])
                continue
            rows.append(
                [
                    *where,
                    f"{1e3 * cell['first_token_seconds']['median']:.1f}",
                    _spread(cell["prefill_tokens_per_second"]),
                    _spread(cell["decode_tokens_per_second"]),
                    _ratio(cell, base["cells"][place]),
                    f"{cell['peak_bytes']['median'] / 1e9:.2f}" if "peak_bytes" in cell else "–",
                    f"{one['setting']}, {' or '.join(cell['cache'])} cache",
                ]
            )
    headers = ["batch", "prompt", "new", "model", "engine", "first token ms", "prefill tokens/s", "decode tokens/s"]
    headers += [f"decode vs {base['name']}/{base['engine']}", "peak GB", "setting"]
    return table(headers, rows) if rows else ""


def _training(found: dict[str, Any]) -> str:
    settings = found["settings"]
    batch, length = settings["train"]
    rows = []
    for one in found["subjects"]:
        cell = one["train"]
        name = [_label(one, found), one["engine"], str(batch), f"{length:,}"]
        if "error" in cell:
            rows.append([*name, cell["error"], "", ""])
        else:
            peak = f"{cell['peak_bytes']['median'] / 1e9:.2f}" if "peak_bytes" in cell else "–"
            how = "compiled" if settings["compiled"] else "eager"
            rows.append([*name, _spread(cell["step_tokens_per_second"]), peak, how])
    note = f"float32 weights, products in {settings['dtype']}, fused AdamW, no clipping, no data loading"
    return f"Training step: {note}\n" + table(
        ["model", "engine", "micro-batch", "length", "tokens/s", "peak GB", "setting"], rows
    )


def _notes(found: dict[str, Any]) -> str:
    settings = found["settings"]
    devices = sorted({one["device"] for one in found["subjects"] if "device" in one})
    threads = sorted({_plural(one["threads"], "thread") for one in found["subjects"] if "threads" in one})
    where = f"{', '.join(devices) or settings['device']}, {settings['dtype']}"
    where += f", {' or '.join(threads)}" if settings["device"] == "cpu" else ""
    memory = "of all tensors" if settings["device"] == "cuda" else "of the process, libraries included"
    lines = [
        f"{where}; median of {_plural(settings['rounds'], 'round')} (least to most), each model in a process of its "
        f"own; {settings['new_tokens']} new tokens, greedy; "
        f"random prompts; memory {memory}; load average {found['load'][0]} before, {found['load'][1]} after; "
        f"{found['seconds']:.0f} s in all"
    ]
    if settings["layers"]:
        lines.append(
            f"Every model is cut to at most {_plural(settings['layers'], 'layer')}: a quick look, not a claim."
        )
    return "\n".join(lines)


def _spread(figure: dict[str, Any]) -> str:
    def shown(value: float) -> str:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    text = shown(figure["median"])
    return text if len(figure["rounds"]) == 1 else f"{text} ({shown(figure['least'])} to {shown(figure['most'])})"


def _ratio(cell: dict[str, Any], base: dict[str, Any]) -> str:
    """Median over the rounds of the ratio within a round."""
    if "decode_tokens_per_second" not in base:
        return "–"
    own, theirs = (one["decode_tokens_per_second"]["rounds"] for one in (cell, base))
    ratios = [a / b for a, b in zip(own, theirs, strict=True) if a is not None and b is not None]
    return f"{statistics.median(ratios):.2f}×" if ratios else "–"


# ── Drawing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw speeds, time to first token and memory of every subject, by batch and prompt.

    Raises:
        UserError: the name of the file does not say a format that is drawn.
    """
    check_drawing(path)
    import matplotlib.style
    from matplotlib.figure import Figure

    style = {
        "font.size": 8,
        "svg.fonttype": "none",
        "svg.hashsalt": "xmodel",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
    }
    subjects, cells = found["subjects"], found["settings"]["cells"]
    height = 0.2 * len(subjects) * len(cells) + 1.2
    with matplotlib.style.context(["default", style]):
        chart = Figure(figsize=(12, 2 * height + 0.8), layout="constrained")
        for axes, (name, title, scale) in zip(chart.subplots(2, 2).flat, PANELS, strict=True):
            _draw_panel(axes, found, name, scale)
            axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
        chart.suptitle(f"[batch × prompt]  {_notes(found)}", fontsize=7, wrap=True)
        no_date = {"Date": None} if path.suffix.lower() == ".svg" else None
        with atomic_write(path) as stream:
            chart.savefig(stream, format=path.suffix.lower()[1:], dpi=150, metadata=no_date)


def _draw_panel(axes: Any, found: dict[str, Any], name: str, scale: float) -> None:
    labels, place = [], 0.0
    for number, (batch, context) in enumerate(found["settings"]["cells"]):
        for index, one in enumerate(found["subjects"]):
            cell = one["cells"][number]
            value = cell[name]["median"] * scale if name in cell else 0.0
            bars = axes.barh([place], [value], 0.8, color=COLOURS[index % len(COLOURS)])
            text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
            axes.bar_label(bars, [text if name in cell else cell.get("error", "–")], padding=3, fontsize=7)
            labels.append((place, f"{_label(one, found)} / {one['engine']}  [{batch} × {context:,}]"))
            place += 1.0
        place += 0.6
    axes.set_yticks([at for at, _ in labels], [label for _, label in labels], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.15, y=0.01)
    axes.grid(axis="x", color="#dddddd", linewidth=0.8)
    axes.tick_params(axis="y", length=0)

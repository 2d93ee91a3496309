"""A plan as text."""

from __future__ import annotations

from typing import Any

from xmodel.console import count, duration, table
from xmodel.plan.memory import GB
from xmodel.recipe.summary import short

Plan = dict[str, Any]


def told(made: Plan) -> str:
    """One plan: what is trained, memory of one GPU by part, time, energy and cost."""
    gpu, how, micro = made["gpu"], made["how"], made["micro_batch"]
    flops, total = made["flops_per_token"], made["flops"]
    sums = ("total", "matmul")
    named = "; ".join(f"{name} {count(number)}" for name, number in made["parameters"].items() if name not in sums)
    rows = [
        ("parameters", f"{made['parameters']['total']:,} ({named})"),
        ("in matrix products", f"{made['parameters']['matmul']:,}: N, the head once"),
        ("FLOP a token", f"{flops['palm']:.4g} (PaLM, 6N + 12·L·d·S), {flops['causal']:.4g} (causal, 6N + 6·L·d·S)"),
        ("tokens a step", f"{made['tokens_per_step']:,}"),
        ("tokens in all", f"{short(made['tokens'])} in {made['steps']:,} steps"),
        ("", f"{made['tokens_per_parameter']:,.4g} a parameter (Chinchilla: 20); {total['palm']:.3g} FLOP (PaLM)"),
        ("data", _data(made["data"], made["tokens"])),
        ("GPUs", f"{made['gpus']} x {gpu['name']}, {gpu['bf16'] / 1e12:,.4g} TFLOP/s in bf16, {how['parallel']}"),
        ("speed of one GPU", f"{made['tokens_per_second_per_gpu']:,.0f} tokens/s"),
        ("", f"MFU {made['mfu_palm']:.1%} PaLM, {made['mfu_causal']:.1%} causal"),
        ("", made["mfu_source"]),
        ("speed of all", f"{made['tokens_per_second']:,.0f} tokens/s, {made['seconds_per_step']:.3g}s a step"),
        (
            "time",
            f"{duration(made['seconds'])} = {short(made['gpu_hours'])} GPU-hours; exchanging gradients not counted",
        ),
    ]
    if made["kwh"] is not None:
        share = f"{made['power_share']:.0%} of {gpu['watts']:,.0f} W a board"
        rows.append(("energy", f"{made['kwh']:,.0f} kWh ({share}, assumed; the boards alone)"))
    if made["cost"] is not None:
        rows.append(("cost", f"{made['cost']:,.0f} at {made['price']:g} a GPU-hour"))
    sizes = made["memory"]["parts"]
    used = sum(sizes.values())
    memory = [(name, f"{size / GB:.2f}") for name, size in sizes.items()]
    memory += [("in all", f"{used / GB:.2f}"), ("the GPU has", f"{gpu['memory'] / GB:.2f}")]
    fits = "fits" if used <= gpu["memory"] else "does not fit"
    title = f"memory of one GPU at micro-batch {made['memory']['micro_batch']}"
    arithmetic = (
        f"{how['precision']}, {'compiled' if how['compiled'] else 'eager'}, checkpointing {how['checkpointing']}"
    )
    notes = [f"{arithmetic}: micro-batch {made['memory']['micro_batch']} {fits}."]
    notes.append(
        f"Largest that fits and divides the {micro['share']} sequences of a GPU: {micro['largest']} "
        f"({made['memory_at_largest'] / GB:.1f} GB)."
    )
    if micro["recipe"] and micro["share"] % micro["recipe"]:
        notes.append(f"The recipe's micro-batch of {micro['recipe']} does not divide {micro['share']}.")
    return "\n".join([table(["plan", made["recipe"]], rows), "", table([title, "GB"], memory), "", " ".join(notes)])


def _data(data: Plan, tokens: int) -> str:
    if not data["sized"]:
        return f"{data['sources']} sources whose sizes the recipe does not state; see `xmodel corpus plan`"
    name, most = max(data["epochs"].items(), key=lambda pair: pair[1])
    sized = "" if data["sized"] == data["sources"] else f" ({data['sized']} of {data['sources']} sources state a size)"
    return (
        f"{count(tokens)} asked of {count(data['available'])}{sized}; most repeated: {name}, {most:.1f} epochs "
        "(`xmodel corpus plan`)"
    )


def compared(rows: list[dict[str, Any]], priced: bool) -> str:
    """What-if rows as a table."""
    heads = [
        "",
        "parameters",
        "largest micro-batch",
        "GB",
        "tokens/s a GPU",
        "days",
        "MWh",
        *(["cost"] if priced else []),
    ]
    cells = []
    for row in rows:
        made = row.get("plan")
        if made is None:
            why = row["problem"].partition(". What would")[0].partition(": ")[2]
            cells.append([row["name"], "–", "does not fit" if "takes" in why else why, *["–"] * (len(heads) - 3)])
            continue
        mwh = "–" if made["kwh"] is None else f"{made['kwh'] / 1000:,.2f}"
        cells.append(
            [
                row["name"],
                count(made["parameters"]["total"]),
                str(made["micro_batch"]["largest"]),
                f"{made['memory_at_largest'] / GB:.1f}",
                f"{made['tokens_per_second_per_gpu']:,.0f}",
                f"{made['seconds'] / 86_400:,.1f}",
                mwh,
                *([f"{made['cost']:,.0f}"] if priced else []),
            ]
        )
    return table(heads, cells)


def measured(found: dict[str, Any]) -> str:
    """What --measure found, in one line."""
    model = found["model"]
    shape = f"{model['layers']} layers of {model['hidden']}, {model['context_length']} tokens x {found['micro_batch']}"
    return (
        f"measured on {found['gpu'].name}: {shape}, {'compiled' if found['compiled'] else 'eager'}: "
        f"{found['tokens_per_second']:,.0f} tokens/s, {found['mfu_palm']:.1%} PaLM MFU of "
        f"{found['gpu'].bf16 / 1e12:.3g} TFLOP/s ({found['peak_source']})"
        + (
            ""
            if found["same_shape"]
            else "; a smaller shape of the family, since this machine is too slow for the recipe's"
        )
    )


def checked(rows: list[dict[str, Any]]) -> str:
    """The published figures beside this arithmetic."""
    formats = {"mfu": "{:.1%}", "days": "{:.1f}"}
    labels = {"mfu": "PaLM MFU of its speed", "forecast": "tokens/s a GPU, planned"}
    cells = []
    for row in rows:
        figure = str(row["figure"])
        write, label = formats.get(figure, "{:,.0f}"), labels.get(figure, figure.replace("_", " "))
        figures = (write.format(row["published"]), write.format(row["ours"]), f"{row['off']:+.1%}")
        cells.append([row["name"], row["gpu"], label, *figures])
    sources = dict.fromkeys(f"{row['name']}: {row['source']}" for row in rows)
    return "\n".join([table(["training", "on", "figure", "published", "ours", "off by"], cells), "", *sources])

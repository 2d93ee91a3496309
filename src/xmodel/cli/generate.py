"""`xmodel generate`: text that continues prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xmodel.cli.common import JSON, WEIGHTS, opening, sampling
from xmodel.errors import MachineError, UserError

if TYPE_CHECKING:
    from xmodel.inference.engine import Delta
    from xmodel.inference.sampling import Sampling
    from xmodel.inference.subjects import Subject


@click.command()
@click.argument("target", metavar="RUN|DIR")
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option("--prompts", "file", metavar="FILE", help='JSON Lines with a "prompt" each; other fields are kept.')
@click.option("--out", metavar="FILE", help="Write the answers there, as JSON Lines in the order of the prompts.")
@sampling(max_new_tokens=128, temperature=0.0, top_p=1.0)
@click.option("--stop", multiple=True, metavar="TEXT", help="Ends an answer, and is left out; repeatable.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same text; plus 1 for each prompt.")
@click.option("--logprobs", type=int, metavar="K", help="With --json or --out: each token's, and its K likeliest's.")
@click.option("--rows", type=click.IntRange(min=1), default=16, show_default=True, help="Prompts at the same time.")
@opening
@WEIGHTS
@JSON
def generate(
    target: str,
    prompts: tuple[str, ...],
    file: str | None,
    out: str | None,
    rows: int,
    step: int | None,
    dtype: str,
    weights: str,
    device: str,
    as_json: bool,
    **settings: Any,
) -> None:
    """Continue prompts with a run, a checkpoint or any model folder. One prompt is streamed as its text is made.

    \b
    Examples:
      xmodel generate runs/quickstart "The capital of France is"
      xmodel generate runs/quickstart "中国的首都是" --temperature 0.8 --top-p 0.95 --seed 7
      xmodel generate runs/quickstart/export/hf --prompts prompts.jsonl --out answers.jsonl
    """
    from xmodel.inference.sampling import Sampling

    asked = Sampling(**settings)
    asked.check()
    if bool(prompts) == bool(file):
        raise UserError("give prompts as arguments, or a file of them with --prompts; one of the two")
    if asked.logprobs is not None and not (as_json or out):
        raise UserError("--logprobs is part of the JSON: add --json or --out FILE")
    items = _read(Path(file)) if file else [{"prompt": prompt} for prompt in prompts]

    from xmodel.inference.fast import prepare
    from xmodel.inference.subjects import open_subject

    subject = open_subject(target, step=step, dtype=dtype, device=device)
    prepare(subject.model, weights)
    if len(items) == 1 and not (as_json or out):
        _stream(subject, items[0]["prompt"], asked)
        return
    answers = _answers(subject, items, asked, rows)
    lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
    if out:
        from xmodel.files import atomic_write

        with atomic_write(Path(out), "w") as stream:
            stream.write("".join(line + "\n" for line in lines))
        click.echo(json.dumps({"out": out, "answers": len(lines)}) if as_json else f"{out}: {len(lines)} answers")
    elif as_json:
        click.echo("\n".join(lines))
    else:
        click.echo("\n\n".join(answer["prompt"] + answer["text"] for answer in answers))


def _stream(subject: Subject, prompt: str, asked: Sampling) -> None:
    from xmodel.inference.engine import Engine
    from xmodel.inference.text import encode_prompt

    with Engine(subject, rows=1) as engine:
        deltas = engine.stream(encode_prompt(subject.tokenizer, prompt, subject.bos), asked)
        click.echo(prompt, nl=False)
        for delta in deltas:
            click.echo(delta.text, nl=False)
            sys.stdout.flush()
            _complain(delta)
    click.echo()


def _answers(subject: Subject, items: Sequence[dict[str, Any]], asked: Sampling, rows: int) -> list[dict[str, Any]]:
    """The answers to all prompts, made together: each item with its text, finish, new_tokens and tokens."""
    from dataclasses import replace

    from xmodel.inference.engine import Engine
    from xmodel.inference.text import encode_prompt

    parts: list[list[Delta]] = [[] for _ in items]
    ids = [encode_prompt(subject.tokenizer, item["prompt"], subject.bos) for item in items]
    with Engine(subject, rows=min(rows, len(items)), queue=len(items)) as engine:
        for number, prompt in enumerate(ids):
            seed = None if asked.seed is None else asked.seed + number
            engine.submit(prompt, replace(asked, seed=seed), parts[number].append)
        engine.close()
    found = []
    for item, deltas in zip(items, parts, strict=True):
        _complain(deltas[-1])
        answer = {"text": "".join(delta.text for delta in deltas), "finish": deltas[-1].finish}
        more: dict[str, Any] = {"new_tokens": deltas[-1].new_tokens}
        if asked.logprobs is not None:
            more["tokens"] = [_token(subject, token) for delta in deltas for token in delta.tokens]
        found.append(item | answer | more)
    return found


def _token(subject: Subject, token: Any) -> dict[str, Any]:
    pieces = subject.tokenizer.pieces

    def named(number: int, logprob: float) -> dict[str, Any]:
        piece = pieces[number] if number < len(pieces) else b""
        return {"id": number, "text": piece.decode(errors="replace"), "logprob": logprob}

    return named(token.id, token.logprob) | {"top": [named(*rival) for rival in token.top]}


def _complain(delta: Delta) -> None:
    if delta.finish == "error":
        raise MachineError("the answer could not be made; the log above says why")


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of prompts."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    items = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
            raise UserError(f'{path}:{number}: has no "prompt" text; a line is like {{"prompt": "Once upon a time"}}')
        items.append(item)
    if not items:
        raise UserError(f"{path}: no prompts in it")
    return items

"""`xmodel chat`: a conversation in the terminal."""

from __future__ import annotations

import click

from xmodel.cli.common import WEIGHTS, opening, sampling


@click.command()
@click.argument("target", metavar="RUN|DIR")
@click.option("--system", default="", metavar="TEXT", help="What the model is told before all turns.")
@sampling(max_new_tokens=256, temperature=0.7, top_p=0.95)
@click.option("--seed", type=int, help="Makes the conversation repeatable (default: new each time).")
@opening
@WEIGHTS
@click.option("--raw", is_flag=True, help="No frame around turns: the model continues one long text.")
@click.option("--language", type=click.Choice(["en", "zh"]), help="Of the interface (default: the locale's).")
def chat(
    target: str,
    system: str,
    dtype: str,
    device: str,
    step: int | None,
    weights: str,
    raw: bool,
    language: str | None,
    **settings: float | int | None,
) -> None:
    """Talk with a model in the terminal: a run, a checkpoint, an exported or any other Hugging Face folder.

    Type a turn, read the answer; /help lists the commands. Ctrl-C stops an answer, Ctrl-D leaves. From a pipe, each
    line is a turn.

    \b
    Examples:
      xmodel chat runs/quickstart
      xmodel chat runs/quickstart --language zh --temperature 0
      xmodel chat mymodel --raw --seed 7
      printf '%s\\n' "Hello" "你好" | xmodel chat runs/quickstart
    """
    from xmodel.chat.screen import opening
    from xmodel.chat.words import Words, locale_language
    from xmodel.inference.sampling import Sampling

    asked = Sampling(**settings)  # pyright: ignore[reportArgumentType] - the options are named as its fields
    asked.check()
    say = Words(language or locale_language())
    with opening(say("opening", where=target)):
        from xmodel.chat.partner import ModelPartner
        from xmodel.chat.talk import talk
        from xmodel.inference.engine import Engine
        from xmodel.inference.fast import prepare
        from xmodel.inference.subjects import open_subject
        from xmodel.inference.text import encode_prompt

        subject = open_subject(target, step=step, dtype=dtype, device=device)
        prepare(subject.model, weights)
        engine = Engine(subject, rows=1)
        first = encode_prompt(subject.tokenizer, "", subject.bos)
        for _ in engine.stream(first, Sampling(max_new_tokens=2)):
            pass  # the first step on a machine compiles kernels: here, not within an answer
    with engine:
        talk(ModelPartner(subject, engine, raw=raw), asked, say, system)

"""`xmodel chat`: a conversation in the terminal."""

from __future__ import annotations

import click


@click.command()
@click.argument("target", metavar="RUN|DIR")
@click.option("--system", default="", metavar="TEXT", help="What the model is told before all turns.")
@click.option("--temperature", type=float, default=0.7, show_default=True, help="0: always the likeliest token.")
@click.option("--top-p", type=float, default=0.95, show_default=True, help="Nucleus; 1: all tokens.")
@click.option("--top-k", type=int, default=0, show_default=True, help="So many of the likeliest tokens; 0: all.")
@click.option("--min-p", type=float, default=0.0, show_default=True, help="Least share of the best; 0: all.")
@click.option("--repetition-penalty", type=float, default=1.0, show_default=True, help="Above 1: less repeating.")
@click.option("--max-new-tokens", type=int, default=256, show_default=True, help="Most tokens of an answer.")
@click.option("--seed", type=int, help="Makes the conversation repeatable (default: new each time).")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Number format; auto: bf16 on a GPU, else fp32.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:NUMBER.")
@click.option("--step", type=click.IntRange(min=0), help="Checkpoint of a run (default: the newest).")
@click.option(
    "--weights",
    type=click.Choice(["auto", "int8"]),
    default="auto",
    show_default=True,
    help="int8: 8-bit integers, on a CPU.",
)
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

    say = Words(language or locale_language())
    with opening(say("opening", where=target)):
        from xmodel.chat.partner import ModelPartner
        from xmodel.chat.talk import talk
        from xmodel.inference.engine import Engine
        from xmodel.inference.fast import prepare
        from xmodel.inference.sampling import Sampling
        from xmodel.inference.subjects import open_subject
        from xmodel.inference.text import encode_prompt

        sampling = Sampling(**settings)  # pyright: ignore[reportArgumentType] - the options are named as its fields
        sampling.check()
        subject = open_subject(target, step=step, dtype=dtype, device=device)
        prepare(subject.model, weights)
        engine = Engine(subject, rows=1)
        first = encode_prompt(subject.tokenizer, "", subject.bos)
        for _ in engine.stream(first, Sampling(max_new_tokens=2)):
            pass  # the first step on a machine compiles kernels: here, not within an answer
    with engine:
        talk(ModelPartner(subject, engine, raw=raw), sampling, say, system)

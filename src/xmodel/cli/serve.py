"""`xmodel serve`: a model behind OpenAI's HTTP interface."""

from __future__ import annotations

import click

from xmodel.cli.common import WEIGHTS, Bytes, opening


@click.command()
@click.argument("target", metavar="RUN|DIR")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0: all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one.")
@click.option(
    "--api-key",
    "keys",
    multiple=True,
    metavar="KEY",
    help="Key that requests have to carry; repeatable. Better: XMODEL_API_KEY, several with commas between them.",
)
@click.option(
    "--cors", "origins", multiple=True, metavar="ORIGIN", help="Web pages that may use it; repeatable; *: any."
)
@click.option("--name", metavar="NAME", help="Of the model in requests and answers (default: the run's).")
@opening
@WEIGHTS
@click.option("--threads", type=click.IntRange(min=1), help="Of the CPU, for the model (default: PyTorch's choice).")
@click.option("--rows", type=click.IntRange(1, 4096), default=16, show_default=True, help="Answers made at once.")
@click.option("--queue", type=click.IntRange(min=1), default=256, show_default=True, help="Waiting; more get 429.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), help="New tokens of an answer at most (default: the context)."
)
@click.option("--max-body", type=Bytes(), default="1MB", show_default=True, help="Of a request; more gets 413.")
@click.option("--body-seconds", type=click.FloatRange(min=0, min_open=True), default=30, show_default=True,
              help="In which a body has to arrive, else 408.")  # fmt: skip
@click.option("--drain", type=click.FloatRange(min=0), default=30, show_default=True,
              help="Seconds in which answers may end after SIGTERM or Ctrl-C.")  # fmt: skip
def serve(
    target: str,
    host: str,
    port: int,
    keys: tuple[str, ...],
    origins: tuple[str, ...],
    name: str | None,
    step: int | None,
    dtype: str,
    device: str,
    weights: str,
    threads: int | None,
    rows: int,
    queue: int,
    max_tokens: int | None,
    max_body: int,
    body_seconds: float,
    drain: float,
) -> None:
    """Serve a model by OpenAI's interface: completions, chat, streaming, and a page at /.

    \b
    Examples:
      xmodel serve runs/quickstart                        http://127.0.0.1:8000
      xmodel serve runs/quickstart/export/hf --port 9000 --rows 64
      XMODEL_API_KEY=secret xmodel serve runs/mine --host 0.0.0.0
    """
    import asyncio
    import os

    from xmodel.console import count, log
    from xmodel.errors import UserError

    try:
        from xmodel.serve.app import Limits, Service
        from xmodel.serve.guard import is_loopback
        from xmodel.serve.server import bind, listen, url
        from xmodel.serve.server import serve as run_server
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn", "prometheus_client"):
            raise
        raise UserError(f"serving needs {error.name}: `pip install xmodel[serve]`") from None
    import torch

    from xmodel.inference.engine import Engine
    from xmodel.inference.fast import prepare
    from xmodel.inference.subjects import open_subject

    all_keys = (*keys, *(key.strip() for key in os.environ.get("XMODEL_API_KEY", "").split(",")))
    all_keys = tuple(dict.fromkeys(key for key in all_keys if key))
    loopback = is_loopback(host)
    listener = bind(host, port)
    if threads:
        torch.set_num_threads(threads)
    subject = open_subject(target, step=step, dtype=dtype, device=device)
    subject = subject._replace(model=prepare(subject.model, weights=weights))
    with Engine(subject, rows=rows, queue=queue) as engine:
        limits = Limits(max_tokens, max_body, body_seconds, all_keys, origins, loopback)
        service = Service(subject, engine, name=name, limits=limits)
        service.warm_up()
        listen(listener)  # whoever reads the address can connect from now on
        about = subject.about
        log(
            f"{url(listener)}  {service.names[0]}: {count(about['parameters'])} parameters, context {service.context}, "
            f"{about['dtype']} on {about['device']}, {rows} answers at once"
        )
        log(call_it(url(listener), service.names[0], bool(all_keys)))
        if not loopback and not all_keys:
            log(f"warning: {host} is open to the network without a key; --api-key or XMODEL_API_KEY asks for one")
        asyncio.run(run_server(service, listener, drain=drain))


def call_it(address: str, name: str, key: bool) -> str:
    """A command that shows that the server works."""
    secret = "-H 'Authorization: Bearer KEY' " if key else ""
    body = f'{{"model": "{name}", "prompt": "The", "max_tokens": 32}}'
    return f"try: curl {secret}{address}/v1/completions -d '{body}'"

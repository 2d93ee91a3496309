"""The training loop, top to bottom: one uninterrupted block for the step, and around it what happens now and then.

The same program runs as plain `python` and under `torchrun`, on CPU and CUDA. Step n is a pure function of the weights
and optimizer state after step n - 1 and of batch n, so a run that was killed goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xmodel.console import JsonLines, count, log, progress, read_json_lines
from xmodel.errors import Interrupted, MachineError, UserError
from xmodel.files import atomic_write, write_json
from xmodel.model.counts import flops_per_token, parameters
from xmodel.model.transformer import Transformer, compile_model
from xmodel.pretrain.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from xmodel.pretrain.data import TrainingData, ValidationData
from xmodel.pretrain.flops import peak_flops
from xmodel.pretrain.optim import clip_grad_norm, global_norm, guarded_step, make_optimizer
from xmodel.pretrain.parallel import Place, accumulation, placed
from xmodel.pretrain.schedule import learning_rate
from xmodel.recipe.settings import Recipe

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
COMPILE_SECONDS = 180  # torch.compile takes up to a minute: below three minutes of training it does not pay

Score = Callable[[Transformer], list[dict[str, Any]]]


def pretrain(recipe: Recipe, tokens_folder: Path, run_folder: Path, score: Score) -> dict[str, Any]:
    """Train the recipe's model from its token shards, or go on from the newest whole checkpoint.

    Args:
        tokens_folder: what the tokens stage wrote.
        run_folder: gets metrics.jsonl, tensorboard/ and checkpoints/.
        score: called with the model at every evaluation; returns score rows for metrics.jsonl.

    Returns:
        The last figures: step, tokens, loss and bits per byte by language.

    Raises:
        UserError: micro-batch and world size that do not fit, a checkpoint of another shape, text too short.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    with placed(recipe.pretrain) as place, stop_signal() as stop:
        return _train(recipe, tokens_folder, run_folder, score, place, stop)


def _train(
    recipe: Recipe, tokens_folder: Path, run_folder: Path, score: Score, place: Place, stop: dict[str, bool]
) -> dict[str, Any]:
    settings, shape, device = recipe.pretrain, recipe.model, place.device
    passes, micro = accumulation(settings, place.world), settings.micro_batch
    tokens_per_step = settings.global_batch * shape.context_length

    # ---- model, optimizer, data -------------------------------------------------------------------------------------
    dtype = DTYPES[settings.precision]
    model = Transformer(shape)
    model.init_weights(recipe.seed)
    model.to(device)
    model.compute_dtype = dtype
    optimizer = make_optimizer(model, settings)
    weights = {source.name: source.weight for source in recipe.corpus.sources}
    data = TrainingData(tokens_folder, weights, recipe.seed, shape.context_length)
    validation = ValidationData(tokens_folder, shape.context_length, settings.eval_tokens, micro)

    # ---- resume -----------------------------------------------------------------------------------------------------
    folder = run_folder / "checkpoints"
    found = newest_checkpoint(folder)
    if found is not None and settings.resume == "never":
        raise UserError(f"pretrain.resume: never, but {found} exists; use resume=auto or another run directory")
    state = {"step": 0, "interval": [0.0, 0.0], "skipped_steps": 0}
    if found is not None:
        state = load_checkpoint(found, model, optimizer)
        log(f"pretrain: goes on from {found.name}")
    first = state["step"]
    metrics = Metrics(run_folder, first if found else -1, settings.tensorboard) if place.first else None
    loss_sum, applied = state["interval"]  # of the steps since the last log line; the first rank keeps the sum
    interval = torch.tensor([loss_sum if place.first else 0.0, applied], dtype=torch.float64, device=device)
    skipped = torch.tensor(state["skipped_steps"], device=device)

    # ---- compile, distribute, dry run -------------------------------------------------------------------------------
    peak, peak_source = peak_flops(device, dtype)
    flops_palm, flops_causal = flops_per_token(shape, shape.context_length)
    expected_seconds = flops_causal * tokens_per_step * (settings.steps - first) / (0.3 * peak * place.world)
    compiled = settings.compile == "on" or (settings.compile == "auto" and expected_seconds > COMPILE_SECONDS)
    if compiled:
        compile_model(model)
    shared = DistributedDataParallel(model) if place.world > 1 else None
    trained = shared or model
    log(
        f"pretrain: {count(parameters(shape)['total'])} parameters, {count(tokens_per_step)} tokens a step "
        f"({micro} × {shape.context_length} × {passes} passes × {place.world} on {device.type}, {settings.precision}"
        f"{', compiled' if compiled else ''}); MFU against {peak / 1e12:.3g} TFLOP/s ({peak_source})"
    )
    if metrics is not None:
        facts = {"device": device.type, "world": place.world, "precision": settings.precision, "compiled": compiled}
        facts |= {"micro_batch": micro, "peak_flops": peak, "peak_source": peak_source}
        metrics.write({"kind": "start", "step": first, "time": time.time()} | facts)
    dry_run(trained, micro, shape.context_length, device)
    optimizer.zero_grad()

    def evaluate(step: int) -> dict[str, float]:
        with eager(model):
            rows = [{"kind": "validation", **row} for row in validate(model, validation, place)]
            rows += [{"kind": "score", **row} for row in score(model)] if place.first else []
        if metrics is not None:
            for row in rows:
                metrics.write(row | {"step": step, "tokens": step * tokens_per_step, "time": time.time()})
        heldout = (row for row in rows if row["kind"] == "validation")
        return {f"{key}_{row['language']}": row[key] for row in heldout for key in ("loss", "bits_per_byte")}

    def save(step: int) -> None:
        losses = place.sum(interval[:1].clone())
        if place.first:
            partial = {"interval": [losses.item(), interval[1].item()], "skipped_steps": int(skipped.item())}
            save_checkpoint(folder, step, model, optimizer, partial, settings.keep)

    last = evaluate(0) if first == 0 else {}
    with (
        progress("pretrain", settings.steps, "steps", done=first) as shown,
        prefetched(data, settings, place, first) as batches,
    ):
        interval_started, timed_steps = time.perf_counter(), 0
        for step in range(first + 1, settings.steps + 1):
            # ---- the step -------------------------------------------------------------------------------------------
            rate = learning_rate(step, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch_BT = next(batches)
            step_loss = torch.zeros((), dtype=torch.float32, device=device)
            for index in range(passes):
                rows_BT = batch_BT[index * micro : (index + 1) * micro]
                with shared.no_sync() if shared and index < passes - 1 else contextlib.nullcontext():
                    loss = trained(rows_BT[:, :-1], targets_BT=rows_BT[:, 1:]) / tokens_per_step
                    (loss * place.world).backward()  # DistributedDataParallel averages over ranks; the loss is a sum
                step_loss += loss.detach()
            grad_norm = clip_grad_norm(model.parameters(), settings.clip)
            guarded_step(optimizer, grad_norm)
            optimizer.zero_grad()
            finite = torch.isfinite(grad_norm)  # of the averaged gradients, so all ranks agree; never read by the host
            interval += torch.stack((torch.where(finite, step_loss, 0.0), finite.float()))
            skipped += ~finite
            timed_steps += 1

            # ---- now and then ---------------------------------------------------------------------------------------
            end = step == settings.steps
            if step % settings.log_every == 0 or end:
                loss_sum, applied = place.sum(interval[:1].clone()).item(), interval[1].item()
                seconds = time.perf_counter() - interval_started
                speed = timed_steps * tokens_per_step / seconds
                if not applied:
                    raise MachineError(
                        f"step {step}: no finite gradient since the last log line; lower pretrain.peak_lr"
                    )
                mean_loss = loss_sum / applied
                shown.advance(0, f"loss {mean_loss:.3f}, {count(speed)} tokens/s")
                if metrics is not None:
                    metrics.write(
                        {
                            "kind": "train",
                            "step": step,
                            "tokens": step * tokens_per_step,
                            "loss": mean_loss,
                            "lr": rate,
                            "grad_norm": grad_norm.item(),
                            "param_norm": global_norm(model.parameters()).item(),
                            "skipped_steps": int(skipped.item()),
                            "tokens_per_second": round(speed, 1),
                            "mfu_palm": round(speed * flops_palm / (peak * place.world), 4),
                            "mfu_causal": round(speed * flops_causal / (peak * place.world), 4),
                            "seconds": round(seconds, 3),
                            "time": time.time(),
                        }
                    )
                interval.zero_()
                interval_started, timed_steps = time.perf_counter(), 0
            shown.advance(1)
            stopping = agreed_stop(stop, place, step % settings.log_every == 0)
            paused = time.perf_counter()
            if end or (settings.eval_every and step % settings.eval_every == 0):
                last = evaluate(step)
            if end or stopping or step % settings.save_every == 0:
                save(step)
            interval_started += time.perf_counter() - paused  # throughput is of training alone
            if stopping and not end:
                raise Interrupted(f"stopped at step {step}, which is saved; the same command goes on")
    figures = {key: round(value, 4) for key, value in last.items()}
    summary = {"step": settings.steps, "tokens": settings.steps * tokens_per_step} | figures
    if place.first:
        write_json(folder / "summary.json", summary)
    return summary


def dry_run(model: nn.Module, micro: int, length: int, device: torch.device) -> None:
    """One forward and backward pass of full size before step 1: out of memory and compile errors show at once.

    Raises:
        UserError: the micro-batch does not fit.
    """
    tokens_BT = torch.zeros(micro, length, dtype=torch.int64, device=device)
    started = time.perf_counter()
    try:
        with model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
            (model(tokens_BT, targets_BT=tokens_BT) * 0).backward()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"pretrain.micro_batch: {micro} sequences of {length} tokens do not fit into memory; try a smaller one"
        ) from error
    log(f"pretrain: dry run passed in {time.perf_counter() - started:.1f}s")


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and no recompilation for its many shapes."""
    model.eval()
    torch.compiler.set_stance("force_eager")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.compiler.set_stance("default")
        model.train()


def validate(model: Transformer, data: ValidationData, place: Place) -> list[dict[str, Any]]:
    """Loss (nats per token) and bits per UTF-8 byte of the held-out text, by language; shared among the ranks."""
    rows = []
    for language in data.windows:
        total = torch.zeros((), dtype=torch.float64, device=place.device)
        for tokens_BT, targets_BT in data.batches(language, place.rank, place.world):
            total += model.loss(tokens_BT.to(place.device), targets_BT.to(place.device))
        nats = place.sum(total).item()
        tokens, size = data.tokens[language], data.bytes[language]
        rows.append({"language": language, "loss": nats / tokens, "bits_per_byte": nats / math.log(2) / size})
    return rows


@contextmanager
def prefetched(data: TrainingData, settings: Any, place: Place, first: int) -> Iterator[Iterator[Tensor]]:
    """This rank's batches of steps `first` + 1, ...: int64 [B, T + 1] on the device, read ahead in a thread."""

    def read(step: int) -> Tensor:
        rows_BT = torch.from_numpy(data.batch(step - 1, settings.global_batch, place.rank, place.world))
        return rows_BT.pin_memory() if place.device.type == "cuda" else rows_BT

    def batches() -> Iterator[Tensor]:
        ahead: Future[Tensor] = reader.submit(read, first + 1)
        for step in range(first + 1, settings.steps + 1):
            rows_BT = ahead.result()
            if step < settings.steps:
                ahead = reader.submit(read, step + 1)
            yield rows_BT.to(place.device, non_blocking=True)

    with ThreadPoolExecutor(1) as reader:
        yield batches()


@contextmanager
def stop_signal() -> Iterator[dict[str, bool]]:
    """SIGTERM and Ctrl-C set a flag that the loop looks at between steps; a second Ctrl-C stops at once."""
    stop = {"asked": False}

    def ask(signum: int, frame: Any) -> None:
        if stop["asked"] and signum == signal.SIGINT:
            raise KeyboardInterrupt
        stop["asked"] = True

    old = {which: signal.signal(which, ask) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for which, handler in old.items():
            signal.signal(which, handler)


def agreed_stop(stop: dict[str, bool], place: Place, meeting: bool) -> bool:
    """Whether to stop after this step. Several ranks agree at meeting steps only: it costs them a collective."""
    if place.world == 1:
        return stop["asked"]
    if not meeting:
        return False
    asked = torch.tensor(float(stop["asked"]), device=place.device)
    return place.sum(asked).item() > 0


class Metrics:
    """metrics.jsonl, and TensorBoard where it is installed."""

    def __init__(self, run_folder: Path, last_step: int, tensorboard: bool) -> None:
        """Rows after `last_step` come from a process that was killed; they will be made again, and are removed."""
        path = run_folder / "metrics.jsonl"
        rows = read_json_lines(path)
        kept = [row for row in rows if row["step"] <= last_step]
        with atomic_write(path, "w") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        self.lines = JsonLines(path)
        self.board: Any = None
        if tensorboard:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(run_folder / "tensorboard"), purge_step=last_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        self.lines.write(row)
        if self.board is None:
            return
        name = "/".join(str(row[key]) for key in ("kind", "set", "language") if key in row)
        for key, value in row.items():
            if isinstance(value, int | float) and key not in ("step", "time"):
                self.board.add_scalar(f"{name}/{key}", value, row["step"])

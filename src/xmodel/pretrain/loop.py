"""The training loop, top to bottom: one uninterrupted block for the step, and around it what happens now and then.

The same program runs as plain `python` and under `torchrun`, on CPU and CUDA. Step n is a pure function of the weights
and optimizer state after step n - 1 and of batch n, so a run that was killed goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from xmodel.console import count, log, progress
from xmodel.errors import Interrupted, MachineError, UserError
from xmodel.files import write_json
from xmodel.model.counts import flops_per_token, parameters
from xmodel.model.documents import model_inputs
from xmodel.model.transformer import Transformer, compile_model
from xmodel.pretrain.average import in_place_of_weights, start_average, update_average
from xmodel.pretrain.branch import branch_point
from xmodel.pretrain.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from xmodel.pretrain.data import TrainingData, ValidationData, prefetched, valid_targets
from xmodel.pretrain.flops import peak_flops
from xmodel.pretrain.metrics import Metrics, opened_metrics
from xmodel.pretrain.optim import clip_grad_norm, guarded_step, make_optimizer, set_learning_rate
from xmodel.pretrain.parallel import Place, accumulation, placed
from xmodel.pretrain.profile import Profiler
from xmodel.pretrain.schedule import learning_rate, stable_end
from xmodel.pretrain.stop import agreed_stop, stop_signal
from xmodel.pretrain.validate import eager, validate
from xmodel.pretrain.watch import Watch
from xmodel.recipe.batches import samples_through
from xmodel.recipe.phases import mixture
from xmodel.recipe.settings import Recipe
from xmodel.tokens.shards import end_id

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
COMPILE_SECONDS = 180  # torch.compile takes up to a minute: below three minutes of training it does not pay

Score = Callable[[Transformer], list[dict[str, Any]]]


def pretrain(recipe: Recipe, tokens_folder: Path, run_folder: Path, score: Score) -> dict[str, Any]:
    """Train the recipe's model from its token shards, or go on from the newest whole checkpoint.

    Args:
        tokens_folder: what the tokens stage wrote.
        run_folder: gets metrics.jsonl, checkpoints/, tensorboard/ and, on request, profile/.
        score: called with the model at every evaluation; returns score rows for metrics.jsonl.

    Returns:
        The last figures: step, tokens, loss and bits per byte by language.

    Raises:
        UserError: micro-batch and world size that do not fit, a checkpoint of another shape, text too short, a tracker
            that is not installed.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    with (
        placed(recipe.pretrain) as place,
        stop_signal() as stop,
        opened_metrics(run_folder, recipe, place.first) as metrics,
    ):
        return _train(recipe, tokens_folder, run_folder, score, place, stop, metrics)


def _train(
    recipe: Recipe,
    tokens_folder: Path,
    run_folder: Path,
    score: Score,
    place: Place,
    stop: dict[str, bool],
    metrics: Metrics,
) -> dict[str, Any]:
    settings, shape, device = recipe.pretrain, recipe.model, place.device
    passes, micro = accumulation(settings, place.world), settings.micro_batch
    tokens_per_step = settings.global_batch * shape.context_length

    def tokens_through(step: int) -> int:
        return samples_through(step, settings) * shape.context_length

    # ---- model, optimizer, data -------------------------------------------------------------------------------------
    dtype = DTYPES[settings.precision]
    model = Transformer(shape)
    model.init_weights(recipe.seed)
    model.to(device)
    model.compute_dtype, model.z_loss = dtype, settings.z_loss
    optimizer, average = make_optimizer(model, settings), start_average(model, settings)
    data = TrainingData(tokens_folder, mixture(recipe), recipe.seed, shape.context_length, settings.packing)
    document_end = end_id(tokens_folder) if settings.document_mask else None
    validation = ValidationData(tokens_folder, shape.context_length, settings.eval_tokens, micro, document_end)

    # ---- resume -----------------------------------------------------------------------------------------------------
    folder = run_folder / "checkpoints"
    found = newest_checkpoint(folder)
    if found is not None and settings.resume == "never":
        raise UserError(f"pretrain.resume: never, but {found} exists; use resume=auto or another run directory")
    state = {"step": 0, "interval": [0.0, 0.0], "skipped_steps": 0}
    found = found or branch_point(recipe, tokens_folder)
    if found is not None:
        state = load_checkpoint(found, model, optimizer, average)
        log(f"pretrain: goes on from {found}")
    first = state["step"]
    metrics.begin(first if found else -1)
    loss_sum, applied = state["interval"]  # of the steps since the last log line; the first rank keeps the sum
    interval = torch.tensor([loss_sum if place.first else 0.0, applied], dtype=torch.float64, device=device)
    skipped = torch.tensor(state["skipped_steps"], device=device)

    # ---- compile, distribute, dry run -------------------------------------------------------------------------------
    peak, peak_source = peak_flops(device, dtype)
    flops_palm, flops_causal = flops_per_token(shape, shape.context_length)
    tokens_left = tokens_through(settings.steps) - tokens_through(first)
    expected_seconds = flops_causal * tokens_left / (0.3 * peak * place.world)
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
    facts = {"device": device.type, "world": place.world, "precision": settings.precision, "compiled": compiled}
    facts |= {"micro_batch": micro, "peak_flops": peak, "peak_source": peak_source}
    metrics.write({"kind": "start", "step": first} | facts)
    epochs = data.epochs(samples_through(settings.steps, settings))
    log(f"pretrain: epochs of the sources: {', '.join(f'{name} {times:.2f}' for name, times in epochs.items())}")
    watch, profiler = Watch(model, settings, place), Profiler(run_folder, place, settings.steps)
    dry_run(trained, micro, shape.context_length, device, document_end)
    optimizer.zero_grad()

    def evaluate(step: int) -> dict[str, float]:
        with eager(model), in_place_of_weights(average, model):
            rows = [{"kind": "validation", **row} for row in validate(model, validation, place)]
            rows += [{"kind": "score", **row} for row in score(model)] if place.first else []
        for row in rows:
            metrics.write(row | {"step": step, "tokens": tokens_through(step)})
        heldout = (row for row in rows if row["kind"] == "validation")
        return {f"{key}_{row['language']}": row[key] for row in heldout for key in ("loss", "bits_per_byte")}

    def save(step: int) -> None:
        losses = place.sum(interval[:1].clone())
        if place.first:
            partial = {"interval": [losses.item(), interval[1].item()], "skipped_steps": int(skipped.item())}
            save_checkpoint(folder, step, model, optimizer, partial, settings.keep, average)
            if step == branching:  # to branch other lengths from; retention does not reach it there
                save_checkpoint(folder / "before-decay", step, model, optimizer, partial, 1, average)

    branching = stable_end(settings) if settings.schedule == "wsd" else 0
    last = evaluate(0) if first == 0 else {}
    with (
        progress("pretrain", settings.steps, "steps", done=first) as shown,
        prefetched(data, settings, place, first) as batches,
    ):
        interval_started, interval_step = time.perf_counter(), first
        for step in range(first + 1, settings.steps + 1):
            # ---- the step -------------------------------------------------------------------------------------------
            rate = learning_rate(step, settings)
            set_learning_rate(optimizer, rate)
            batch_BT = watch.batch(batches)
            valid = valid_targets(batch_BT, settings, document_end, place)
            rows_PBT = batch_BT.split(micro)
            step_loss = torch.zeros((), dtype=torch.float32, device=device)
            for index, rows_BT in enumerate(rows_PBT, start=1):
                with shared.no_sync() if shared and index < len(rows_PBT) else contextlib.nullcontext():
                    loss = trained(**model_inputs(rows_BT, document_end)) / valid
                    (loss * place.world).backward()  # DistributedDataParallel averages over ranks; the loss is a sum
                step_loss += loss.detach()
            watch.before(step)
            grad_norm = clip_grad_norm(model.parameters(), settings.clip)
            guarded_step(optimizer, grad_norm)
            watch.after(step)
            optimizer.zero_grad()
            update_average(average, model, step, settings)
            finite = torch.isfinite(grad_norm)  # of the averaged gradients, so all ranks agree; never read by the host
            interval += torch.stack((torch.where(finite, step_loss, 0.0), finite.float()))
            skipped += ~finite

            # ---- now and then ---------------------------------------------------------------------------------------
            end = step == settings.steps
            if step % settings.log_every == 0 or end:
                loss_sum, applied = place.sum(interval[:1].clone()).item(), interval[1].item()
                seconds = time.perf_counter() - interval_started
                speed = (tokens_through(step) - tokens_through(interval_step)) / seconds
                if not applied:
                    raise MachineError(
                        f"step {step}: no finite gradient since the last log line; lower pretrain.peak_lr"
                    )
                mean_loss = loss_sum / applied
                shown.advance(0, f"loss {mean_loss:.3f}, {count(speed)} tokens/s")
                metrics.write(
                    {
                        "kind": "train",
                        "step": step,
                        "tokens": tokens_through(step),
                        "loss": mean_loss,
                        "lr": rate,
                        "grad_norm": grad_norm.item(),
                        "skipped_steps": int(skipped.item()),
                        "tokens_per_second": round(speed, 1),
                        "mfu_palm": round(speed * flops_palm / (peak * place.world), 4),
                        "mfu_causal": round(speed * flops_causal / (peak * place.world), 4),
                        "seconds": round(seconds, 3),
                    }
                    | watch.figures(seconds)
                )
                interval.zero_()
                interval_started, interval_step = time.perf_counter(), step
            if by_layer := watch.layers(step):
                metrics.write(by_layer | {"tokens": tokens_through(step)})
            profiler.step(step, look=step % settings.log_every == 0 or step == first + 1)
            shown.advance(1)
            stopping = agreed_stop(stop, place, step % settings.log_every == 0)
            paused = time.perf_counter()
            if end or (settings.eval_every and step % settings.eval_every == 0):
                last = evaluate(step)
            if end or stopping or step == branching or step % settings.save_every == 0:
                save(step)
            interval_started += time.perf_counter() - paused  # throughput is of training alone
            if stopping and not end:
                raise Interrupted(f"stopped at step {step}, which is saved; the same command goes on")
    figures = {key: round(value, 4) for key, value in last.items()}
    summary = {"step": settings.steps, "tokens": tokens_through(settings.steps)} | figures
    if place.first:
        write_json(folder / "summary.json", summary)
    return summary


def dry_run(model: nn.Module, micro: int, length: int, device: torch.device, document_end: int | None = None) -> None:
    """One forward and backward pass of full size before step 1: out of memory and compile errors show at once.

    Raises:
        UserError: the micro-batch does not fit.
    """
    rows_BT = torch.zeros(micro, length + 1, dtype=torch.int64, device=device)
    started = time.perf_counter()
    try:
        with model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
            (model(**model_inputs(rows_BT, document_end)) * 0).backward()
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"pretrain.micro_batch: {micro} sequences of {length} tokens do not fit into memory; try a smaller one"
        ) from error
    log(f"pretrain: dry run passed in {time.perf_counter() - started:.1f}s")

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
from xmodel.errors import Interrupted, UserError
from xmodel.files import read_json, write_json
from xmodel.model.counts import flops_per_token, parameters
from xmodel.model.transformer import Transformer, compile_model
from xmodel.pretrain.checkpoint import Checkpointer, load_checkpoint
from xmodel.pretrain.checkpoint_files import newest_checkpoint
from xmodel.pretrain.checks import check_before, verify_tokens
from xmodel.pretrain.data import TrainingData, ValidationData, prefetched
from xmodel.pretrain.flops import peak_flops
from xmodel.pretrain.guard import Rewind, judge, new_guard, progressed
from xmodel.pretrain.metrics import Metrics
from xmodel.pretrain.optim import clip_grad_norm, global_norm, guarded_step, make_optimizer
from xmodel.pretrain.parallel import Place, accumulation, distributed, gathered, last_pass, placed
from xmodel.pretrain.schedule import learning_rate
from xmodel.pretrain.stop import agreed_stop, stop_signal
from xmodel.pretrain.validate import eager, validate
from xmodel.recipe.settings import Recipe

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
SUMMARY = "summary.json"
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
        check_before(recipe, tokens_folder, run_folder, place.world)
        verify_tokens(recipe, tokens_folder, place.rank, place.world)
        again: Rewind | None = None
        while True:
            try:
                return _train(recipe, tokens_folder, run_folder, score, place, stop, again)
            except Rewind as spikes:
                again = spikes.with_traceback(None)  # which would hold the old model


def _train(
    recipe: Recipe,
    tokens_folder: Path,
    run_folder: Path,
    score: Score,
    place: Place,
    stop: dict[str, bool],
    again: Rewind | None,
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
    trained = distributed(model, place, settings)
    optimizer = make_optimizer(model, settings)
    guard = new_guard(settings.spike_window, device)
    extra = {f"guard.{name}": tensor for name, tensor in guard.items()}  # what else a checkpoint holds
    weights = {source.name: source.weight for source in recipe.corpus.sources}
    data = TrainingData(tokens_folder, weights, recipe.seed, shape.context_length)
    validation = ValidationData(tokens_folder, shape.context_length, settings.eval_tokens, micro)

    # ---- resume -----------------------------------------------------------------------------------------------------
    folder = run_folder / "checkpoints"
    found = newest_checkpoint(folder, place)
    if found is not None and settings.resume == "never":
        raise UserError(f"pretrain.resume: never, but {found} exists; use resume=auto or another run directory")
    state: dict[str, Any] = {"step": 0, "interval": [0.0, 0.0], "left_out": []}
    tokenizer = read_json(tokens_folder / "manifest.json").get("tokenizer")
    if found is not None:
        state = load_checkpoint(found, model, optimizer, extra, tokenizer)
        log(f"pretrain: goes on from {found.name}")
    first, left_out = state["step"], state["left_out"]
    if first == settings.steps and (folder / SUMMARY).is_file():
        return read_json(folder / SUMMARY)
    metrics = Metrics(run_folder, first if found else -1, settings.tensorboard) if place.first else None
    if again is not None:
        left_out = again.spans(first)
        guard["in_a_row"].zero_()
        log(f"pretrain: steps were skipped in a row up to step {again.step}; back to {first}, without the data since")
        if metrics is not None:
            metrics.write({"kind": "rewind", "step": first + 1, "from_step": again.step, "time": time.time()})
    interval = torch.tensor(state["interval"], dtype=torch.float64, device=device)  # loss and steps since the last line
    saver = Checkpointer(folder, place, settings.keep, settings.keep_every, saved=first if found else None)

    # ---- compile, dry run -------------------------------------------------------------------------------------------
    peak, peak_source = peak_flops(device, dtype)
    flops_palm, flops_causal = flops_per_token(shape, shape.context_length)
    expected_seconds = flops_causal * tokens_per_step * (settings.steps - first) / (0.3 * peak * place.world)
    compiled = settings.compile == "on" or (settings.compile == "auto" and expected_seconds > COMPILE_SECONDS)
    if compiled:
        compile_model(model)
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
        complete = gathered(model)
        with eager(complete):
            rows = [{"kind": "validation", **row} for row in validate(complete, validation, place)]
            rows += [{"kind": "score", **row} for row in score(complete)] if place.first else []
        if metrics is not None:
            for row in rows:
                metrics.write(row | {"step": step, "tokens": step * tokens_per_step, "time": time.time()})
        heldout = (row for row in rows if row["kind"] == "validation")
        return {f"{key}_{row['language']}": row[key] for row in heldout for key in ("loss", "bits_per_byte")}

    def save(step: int) -> None:
        state = {"interval": interval.tolist(), "left_out": left_out, "tokenizer": tokenizer}
        saver.save(step, model, optimizer, state, extra)

    def summary(last: dict[str, float]) -> dict[str, Any]:
        figures = {key: round(value, 4) for key, value in last.items()}
        return {"step": settings.steps, "tokens": settings.steps * tokens_per_step} | figures

    last = evaluate(0) if first == 0 else {}
    with (
        saver,
        progress("pretrain", settings.steps, "steps", done=first) as shown,
        prefetched(data, settings, place, first, sum(steps for _, steps in left_out)) as batches,
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
                with last_pass(trained, settings, index == passes - 1):
                    loss = trained(rows_BT[:, :-1], targets_BT=rows_BT[:, 1:]) / tokens_per_step
                    (loss * place.world).backward()  # gradients are averaged over the ranks; the loss is a sum
                step_loss += loss.detach()
            place.sum(step_loss)
            grad_norm = clip_grad_norm(model.parameters(), settings.clip)
            sound = judge(guard, step_loss, grad_norm, settings.spike_sigma)  # never read by the host
            guarded_step(optimizer, torch.where(sound, grad_norm, torch.nan))
            optimizer.zero_grad()
            interval += torch.stack((torch.where(sound, step_loss, 0.0), sound.float()))
            timed_steps += 1

            # ---- now and then ---------------------------------------------------------------------------------------
            end = step == settings.steps
            due = step % settings.log_every == 0 or end
            if due and progressed(guard, interval[1].item(), settings, step, saver.wait, left_out):
                loss_sum, applied = interval.tolist()
                seconds = time.perf_counter() - interval_started
                speed = timed_steps * tokens_per_step / seconds
                mean_loss, param_norm = loss_sum / applied, global_norm(model.parameters())
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
                            "param_norm": param_norm.item(),
                            "skipped_steps": guard["skipped"].item(),
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
            stopping = agreed_stop(stop, place, due)
            paused = time.perf_counter()
            if end or (settings.eval_every and step % settings.eval_every == 0):
                last = evaluate(step)
            if end and place.first:  # before the checkpoint: where that stands, this does
                write_json(folder / SUMMARY, summary(last))
            if end or stopping or step % settings.save_every == 0:
                save(step)
            interval_started += time.perf_counter() - paused  # throughput is of training alone
            if end or stopping:
                saver.finish()
            if stopping and not end:
                raise Interrupted(f"stopped at step {step}, which is saved; the same command goes on")
    return summary(last)


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

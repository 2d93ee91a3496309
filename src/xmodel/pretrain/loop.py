"""The training loop, top to bottom: one uninterrupted block for the step, and around it what happens now and then.

The same program runs as plain `python` and under `torchrun`, on CPU and CUDA. Step n is a pure function of the weights
and optimizer state after step n - 1 and of batch n, so a run that was killed goes on bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodel.console import count, log, progress
from xmodel.errors import Interrupted
from xmodel.files import read_json, write_json
from xmodel.model.counts import flops_per_token, parameters
from xmodel.model.documents import model_inputs
from xmodel.model.transformer import Transformer, compile_model
from xmodel.pretrain.average import in_place_of_weights, update_average
from xmodel.pretrain.checkpoint import Checkpointer
from xmodel.pretrain.checks import check_before, log_epochs, verify_tokens
from xmodel.pretrain.data import TrainingData, ValidationData, prefetched, valid_targets
from xmodel.pretrain.fit import fit_micro_batch
from xmodel.pretrain.flops import peak_flops
from xmodel.pretrain.garbage import garbage_held_back
from xmodel.pretrain.guard import Rewind, judge, progressed
from xmodel.pretrain.metrics import Metrics, opened_metrics
from xmodel.pretrain.optim import clip_grad_norm, guarded_step, set_learning_rate
from xmodel.pretrain.parallel import Place, accumulation, gathered, last_pass, placed
from xmodel.pretrain.profile import Profiler
from xmodel.pretrain.schedule import learning_rate, stable_end
from xmodel.pretrain.stop import agreed_stop, stop_signal
from xmodel.pretrain.training import Training, go_on, new_training
from xmodel.pretrain.validate import eager, validate
from xmodel.pretrain.watch import Watch
from xmodel.recipe.batches import samples_through
from xmodel.recipe.settings import Recipe

SUMMARY = "summary.json"
COMPILE_SECONDS = 180  # torch.compile takes up to a minute: below three minutes of training it does not pay

Score = Callable[[Transformer], list[dict[str, Any]]]


def pretrain(recipe: Recipe, tokens_folder: Path, run_folder: Path, score: Score) -> dict[str, Any]:
    """Train the recipe's model from its token shards, or go on from the newest whole checkpoint.

    Args:
        tokens_folder: what the tokens stage wrote.
        run_folder: gets metrics.jsonl, tensorboard/ and checkpoints/.
        score: called with the model, on the first rank alone, at the evaluations that `evaluate.during_every` names;
            returns score rows for metrics.jsonl.

    Returns:
        The last figures: step, tokens, loss and bits per byte by language.

    Raises:
        UserError: micro-batch and world size that do not fit, a checkpoint of another model or tokenizer, text too
            short, a tracker that is not installed.
        MachineError: damaged token shards, another rank that died, nothing but skipped steps, a full disk at the end.
        Interrupted: SIGTERM or Ctrl-C; a checkpoint was saved.
    """
    with placed(recipe.pretrain) as place, stop_signal() as stop:
        data = check_before(recipe, tokens_folder, run_folder, place.world)
        log_epochs(recipe, data)
        verify_tokens(recipe, tokens_folder, place.rank, place.world)
        again: Rewind | None = None
        while True:
            try:
                with opened_metrics(run_folder, recipe, place.first) as metrics:
                    return _train(recipe, tokens_folder, data, run_folder, score, place, stop, metrics, again)
            except Rewind as spikes:
                again = spikes.with_traceback(None)  # which would hold the old model


def train_step(run: Training, step: int, batch_BT: Tensor, watch: Watch) -> Tensor:
    """One optimizer step, without a moment at which the host waits for the device.

    Args:
        batch_BT: int64 [sequences of this rank, context + 1] on the device.

    Returns:
        the norm of the gradients before clipping, a float32 scalar on the device.
    """
    settings, place = run.settings, run.place
    set_learning_rate(run.optimizer, learning_rate(step, settings))
    valid = valid_targets(batch_BT, settings, run.document_end, place)
    rows_PBT = batch_BT.split(run.micro)
    step_loss = torch.zeros((), dtype=torch.float32, device=place.device)
    for index, rows_BT in enumerate(rows_PBT, start=1):
        with last_pass(run.trained, settings, index == len(rows_PBT)):
            loss = run.trained(**model_inputs(rows_BT, run.document_end)) / valid
            (loss * place.world).backward()  # gradients are averaged over the ranks; the loss is a sum
        step_loss += loss.detach()
    place.sum(step_loss)
    watch.before(step)
    grad_norm = clip_grad_norm(run.model.parameters(), settings.clip)
    sound = judge(run.guard, step_loss, grad_norm, settings.spike_sigma)  # the same on all ranks
    guarded_step(run.optimizer, torch.where(sound, grad_norm, torch.nan))
    watch.after(step)
    run.optimizer.zero_grad()
    update_average(run.average, run.model, step, settings)
    run.interval += torch.stack((torch.where(sound, step_loss, 0.0), sound.float()))
    return grad_norm


def _train(
    recipe: Recipe,
    tokens_folder: Path,
    data: TrainingData,
    run_folder: Path,
    score: Score,
    place: Place,
    stop: dict[str, bool],
    metrics: Metrics,
    again: Rewind | None,
) -> dict[str, Any]:
    settings, shape, device = recipe.pretrain, recipe.model, place.device

    def tokens_through(step: int) -> int:
        return samples_through(step, settings) * shape.context_length

    # ---- begin, or go on --------------------------------------------------------------------------------------------
    folder = run_folder / "checkpoints"
    run = new_training(recipe, tokens_folder, data, place)
    model, guard = run.model, run.guard
    found = go_on(run, recipe, tokens_folder, folder)
    first = run.first
    if first == settings.steps and (folder / SUMMARY).is_file():
        return read_json(folder / SUMMARY)
    metrics.begin(first if found else -1)
    if again is not None:
        run.left_out = again.spans(first)
        guard["in_a_row"].zero_()
        log(f"pretrain: steps were skipped in a row up to step {again.step}; back to {first}, without the data since")
        metrics.write({"kind": "rewind", "step": first + 1, "from_step": again.step})

    # ---- compile, see what fits -------------------------------------------------------------------------------------
    peak, peak_source = peak_flops(device, model.compute_dtype)
    flops_palm, flops_causal = flops_per_token(shape, shape.context_length)
    tokens_left = tokens_through(settings.steps) - tokens_through(first)
    expected_seconds = flops_causal * tokens_left / (0.3 * peak * place.world)
    compiled = settings.compile == "on" or (settings.compile == "auto" and expected_seconds > COMPILE_SECONDS)
    if compiled:
        compile_model(model)
    run.micro = fit_micro_batch(run.trained, run.optimizer, shape, settings, place, run.document_end)
    passes = accumulation(replace(settings, micro_batch=run.micro), place.world)
    validation = ValidationData(tokens_folder, shape.context_length, settings.eval_tokens, run.micro, run.document_end)
    log(
        f"pretrain: {count(parameters(shape)['total'])} parameters, "
        f"{count(settings.global_batch * shape.context_length)} tokens a step ({run.micro} × {shape.context_length} × "
        f"{passes} passes × {place.world} on {device.type}), {settings.precision}{', compiled' if compiled else ''}, "
        f"attention {model.attention}, activation checkpointing {model.checkpointing}; "
        f"MFU against {peak / 1e12:.3g} TFLOP/s ({peak_source})"
    )
    facts = {"device": device.type, "world": place.world, "parallel": settings.parallel if place.world > 1 else "none"}
    facts |= {"precision": settings.precision, "compiled": compiled, "attention": model.attention}
    facts |= {"activation_checkpointing": model.checkpointing, "micro_batch": run.micro}
    metrics.write({"kind": "start", "step": first} | facts | {"peak_flops": peak, "peak_source": peak_source})
    watch, profiler = Watch(model, settings, place), Profiler(run_folder, place, settings.steps)
    branching = stable_end(settings) if settings.schedule == "wsd" else 0  # kept for good: runs may branch from it
    saver = Checkpointer(
        folder,
        place,
        settings.keep,
        for_good=lambda step: step == branching or bool(settings.keep_every and step % settings.keep_every == 0),
        saved=first if found else None,
    )

    def evaluate(step: int) -> dict[str, float]:
        every = recipe.evaluate.during_every
        scored = place.first and (step in (0, settings.steps) or not every or step % every == 0)
        with in_place_of_weights(run.average, model):
            complete = gathered(model)
            with eager(complete):
                rows = [{"kind": "validation", **row} for row in validate(complete, validation, place)]
                rows += [{"kind": "score", **row} for row in score(complete)] if scored else []
        for row in rows:
            metrics.write(row | {"step": step, "tokens": tokens_through(step)})
        heldout = (row for row in rows if row["kind"] == "validation")
        return {f"{key}_{row['language']}": row[key] for row in heldout for key in ("loss", "bits_per_byte")}

    def summary(last: dict[str, float]) -> dict[str, Any]:
        figures = {key: round(value, 4) for key, value in last.items()}
        return {"step": settings.steps, "tokens": tokens_through(settings.steps)} | figures

    last = evaluate(0) if first == 0 else {}
    with (
        saver,
        progress("pretrain", settings.steps, "steps", done=first) as shown,
        prefetched(run.data, settings, place, first, run.samples_left_out) as batches,
        garbage_held_back() as collect_garbage,
    ):
        interval_started, interval_step = time.perf_counter(), first
        for step in range(first + 1, settings.steps + 1):
            grad_norm = train_step(run, step, watch.batch(batches), watch)

            # ---- now and then ---------------------------------------------------------------------------------------
            end, due = step == settings.steps, step % settings.log_every == 0 or step == settings.steps
            if due and progressed(guard, run.interval[1].item(), settings, step, saver.wait, run.left_out):
                loss_sum, applied = run.interval.tolist()
                seconds = time.perf_counter() - interval_started
                speed = (tokens_through(step) - tokens_through(interval_step)) / seconds
                shown.advance(0, f"loss {loss_sum / applied:.3f}, {count(speed)} tokens/s")
                row = {
                    "kind": "train",
                    "step": step,
                    "tokens": tokens_through(step),
                    "loss": loss_sum / applied,
                    "lr": learning_rate(step, settings),
                    "grad_norm": grad_norm.item(),
                    "skipped_steps": int(guard["skipped"].item()),
                    "tokens_per_second": round(speed, 1),
                    "mfu_palm": round(speed * flops_palm / (peak * place.world), 4),
                    "mfu_causal": round(speed * flops_causal / (peak * place.world), 4),
                    "seconds": round(seconds, 3),
                }
                metrics.write(row | watch.figures(seconds))
                run.interval.zero_()
                interval_started, interval_step = time.perf_counter(), step
            if by_layer := watch.layers(step):
                metrics.write(by_layer | {"tokens": tokens_through(step)})
            profiler.step(step, look=due or step == first + 1)
            shown.advance(1)
            stopping = agreed_stop(stop, place, step % settings.log_every == 0)
            paused = time.perf_counter()
            if end or (settings.eval_every and step % settings.eval_every == 0):
                last = evaluate(step)
            if end and place.first:  # before the checkpoint: where that stands, this does
                write_json(folder / SUMMARY, summary(last))
            if end or stopping or step == branching or step % settings.save_every == 0:
                saver.save(step, model, run.optimizer, run.state(), run.extra, run.average)
            if due:
                collect_garbage()
            interval_started += time.perf_counter() - paused  # throughput is of training alone
            if end or stopping:
                saver.finish()
            if stopping and not end:
                raise Interrupted(f"stopped at step {step}, which is saved; the same command goes on")
    return summary(last)

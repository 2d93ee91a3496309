"""The training loop, top to bottom: one uninterrupted block for the step, and around it what happens now and then.

The same program runs as plain `python` and under `torchrun`, on CPU and CUDA. Step n is a pure function of the weights
and optimizer state after step n - 1 and of batch n, so a run that was killed goes on bit for bit.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from xmodel.console import count, log, progress
from xmodel.errors import Interrupted, MachineError, UserError
from xmodel.files import write_json
from xmodel.model.attention import choose_attention
from xmodel.model.counts import flops_per_token, parameters
from xmodel.model.fp8 import check_fp8
from xmodel.model.transformer import Transformer, compile_model
from xmodel.pretrain.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from xmodel.pretrain.data import TrainingData, ValidationData, prefetched
from xmodel.pretrain.fit import fit_micro_batch
from xmodel.pretrain.flops import peak_flops
from xmodel.pretrain.garbage import garbage_held_back
from xmodel.pretrain.metrics import Metrics
from xmodel.pretrain.optim import clip_grad_norm, global_norm, guarded_step, make_optimizer
from xmodel.pretrain.parallel import Place, accumulation, placed
from xmodel.pretrain.schedule import learning_rate
from xmodel.pretrain.stop import agreed_stop, stop_signal
from xmodel.pretrain.validate import eager, validate
from xmodel.recipe.settings import Recipe

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.bfloat16}
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
    tokens_per_step = settings.global_batch * shape.context_length

    # ---- model, optimizer, data -------------------------------------------------------------------------------------
    dtype = DTYPES[settings.precision]
    model = Transformer(shape)
    model.init_weights(recipe.seed)
    model.to(device)
    model.compute_dtype, model.fp8 = dtype, settings.precision == "fp8"
    if model.fp8:
        check_fp8(shape, shape.context_length, device)
    heads = shape.heads, shape.kv_heads, shape.hidden // shape.heads
    model.attention = choose_attention(settings.attention, *heads, dtype, device)
    model.checkpointing = settings.activation_checkpointing
    optimizer = make_optimizer(model, settings)
    weights = {source.name: source.weight for source in recipe.corpus.sources}
    data = TrainingData(tokens_folder, weights, recipe.seed, shape.context_length)

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
    micro = fit_micro_batch(trained, optimizer, shape, settings, place)
    passes = accumulation(replace(settings, micro_batch=micro), place.world)
    validation = ValidationData(tokens_folder, shape.context_length, settings.eval_tokens, micro)
    log(
        f"pretrain: {count(parameters(shape)['total'])} parameters, {count(tokens_per_step)} tokens a step "
        f"({micro} × {shape.context_length} × {passes} passes × {place.world} on {device.type}, {settings.precision}"
        f"{', compiled' if compiled else ''}, attention {model.attention}, activation checkpointing "
        f"{model.checkpointing}); MFU against {peak / 1e12:.3g} TFLOP/s ({peak_source})"
    )
    if metrics is not None:
        facts = {"device": device.type, "world": place.world, "precision": settings.precision, "compiled": compiled}
        facts |= {"attention": model.attention, "activation_checkpointing": model.checkpointing}
        facts |= {"micro_batch": micro, "peak_flops": peak, "peak_source": peak_source}
        metrics.write({"kind": "start", "step": first, "time": time.time()} | facts)

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
        garbage_held_back() as collect_garbage,
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
            if end or step % settings.log_every == 0:
                collect_garbage()
            interval_started += time.perf_counter() - paused  # throughput is of training alone
            if stopping and not end:
                raise Interrupted(f"stopped at step {step}, which is saved; the same command goes on")
    figures = {key: round(value, 4) for key, value in last.items()}
    summary = {"step": settings.steps, "tokens": settings.steps * tokens_per_step} | figures
    if place.first:
        write_json(folder / "summary.json", summary)
    return summary

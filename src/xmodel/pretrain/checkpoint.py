"""Checkpoints: a model folder that transformers can read, the optimizer's state beside it, a manifest over all.

    step-000000100/  config.json  model.safetensors  [average.safetensors]  optimizer/  state.json  manifest.json

`optimizer/` is a checkpoint of torch.distributed.checkpoint (DCP): every rank writes its own share, and any number of
ranks reads what it needs, whether the run is DDP or FSDP2. One process is the case of one rank. Its tensors are named
`optimizer.KEY.PARAMETER` (exp_avg, exp_avg_sq, step, momentum_buffer, ...) and `extra.NAME` for whatever else a run
keeps.

A checkpoint is copied to the host's memory while training waits, and written behind it: under a temporary name, synced
and renamed; the manifest holds the size and checksum of every file. Reading goes from the newest to the oldest and
takes the first that is whole, and says so when it passes one over.
"""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

from xmodel.console import log
from xmodel.errors import MachineError, UserError
from xmodel.files import PARTIAL, atomic_folder, read_json, write_json
from xmodel.model.checkpoint_io import AVERAGE, read_tensors, save_weights
from xmodel.model.transformer import Transformer
from xmodel.pretrain.checkpoint_files import (
    FORMAT,
    HERE,
    MANIFEST,
    OPTIMIZER,
    STATE,
    ForGood,
    never,
    refuse_other,
    remove_old,
    sums,
)
from xmodel.pretrain.parallel import Place, whole
from xmodel.recipe.settings import Model

SLACK_BYTES = 16 << 20  # room beside the tensors: headers, manifest, the metrics of a while
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process by itself: that is meant


class Snapshot(NamedTuple):
    """A state of the training in the host's memory: this rank's part of it."""

    step: int
    config: Model
    weights: dict[str, Tensor]  # the whole model, on the first rank; empty elsewhere
    average: dict[str, Tensor]  # likewise its averaged weights, if the run has them
    tensors: dict[str, Tensor]  # this rank's share of optimizer and extra
    state: dict[str, Any]
    bytes: int  # of all ranks


# ---- saving ---------------------------------------------------------------------------------------------------------


class Checkpointer:
    """Writes checkpoints behind the training, at most one at a time.

    A checkpoint that cannot be written (a full disk) costs one line and no training: those before stay, and the next
    one is tried. Only `finish` makes an error of it.
    """

    def __init__(
        self, folder: Path, place: Place, keep: int, for_good: ForGood = never, saved: int | None = None
    ) -> None:
        self.folder, self.place, self.keep, self.for_good = folder, place, keep, for_good
        self.saved = saved  # step of the last checkpoint that stands
        self.buffers: dict[str, Tensor] = {}  # host memory of the snapshots, pinned for a GPU; used again and again
        self.thread: Thread | None = None
        self.failure: str | None = None  # of the last checkpoint

    def save(
        self,
        step: int,
        model: Transformer,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        extra: Mapping[str, Tensor] | None = None,
        average: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Copy the state to host memory and begin to write it. Every rank calls this at the same step."""
        self.wait()
        shot = snapshot(step, model, optimizer, state, extra or {}, average or {}, self.place, self.buffers)
        self.thread = Thread(target=self._write, args=(shot,), name=f"checkpoint {step}", daemon=True)
        self.thread.start()

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()  # what is in flight is good, whatever ended the training

    def finish(self) -> None:
        """Wait for the checkpoint in flight.

        Raises:
            MachineError: the last checkpoint could not be written.
        """
        self.wait()
        if self.failure is not None:
            raise MachineError(f"{self.failure}; make room or mend the cause, and repeat the command")

    def wait(self) -> int | None:
        """Wait for the checkpoint in flight; the step of the last that stands, or None."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        return self.saved

    def _write(self, shot: Snapshot) -> None:
        self.failure = None
        try:
            write_checkpoint(self.folder, shot, self.place, self.keep, self.for_good)
            self.saved = shot.step
        except Exception as error:  # in a thread nobody else would see it
            self.failure = f"checkpoint of step {shot.step} was not saved ({_reason(error)})"
            log(f"pretrain: {self.failure}; training goes on, and the next one is tried")


def save_checkpoint(
    folder: Path,
    step: int,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    extra: Mapping[str, Tensor] | None = None,
    average: Mapping[str, Tensor] | None = None,
    for_good: ForGood = never,
    place: Place = HERE,
) -> Path:
    """Write `folder`/step-N and return when it stands; see `Checkpointer` for doing so behind the training."""
    shot = snapshot(step, model, optimizer, state, extra or {}, average or {}, place, {})
    return write_checkpoint(folder, shot, place, keep, for_good)


def snapshot(
    step: int,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    extra: Mapping[str, Tensor],
    average: Mapping[str, Tensor],
    place: Place,
    buffers: dict[str, Tensor],
) -> Snapshot:
    """Copy what this rank writes to host memory: of shards its own, of what all ranks hold an equal part of the bytes.

    Args:
        optimizer: its state holds tensors alone, for parameters of `model`.
        state: what fits JSON.
        extra: further tensors by name, anything that a run needs to go on exactly.
        average: averaged weights by the parameters' names, or nothing.
        buffers: host memory from an earlier call, which is written over.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    everything = {
        f"optimizer.{key}.{names[parameter]}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    } | {f"extra.{name}": value for name, value in extra.items()}
    models: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}}
    for kind, tensors in (("model", model.state_dict()), ("average", average)):
        for name, tensor in tensors.items():
            complete = whole(tensor)  # a collective where it is sharded, so all ranks take part
            if place.first:
                models[kind][name] = _copied(f"{kind}.{name}", complete, buffers)
    mine = _share(everything, place)
    shares = {name: _copied(name, everything[name], buffers) for name in mine}
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)
    if place.behind is not None:
        mesh = DeviceMesh.from_group(place.behind, "cpu")
        shares = {name: _on_host(tensor, everything[name], mesh) for name, tensor in shares.items()}
    size = sum(
        tensor.numel() * tensor.element_size()
        for tensor in (*model.state_dict().values(), *average.values(), *everything.values())
    )
    return Snapshot(step, model.config, models["model"], models["average"], shares, state, size)


def _share(tensors: Mapping[str, Tensor], place: Place) -> list[str]:
    """Names of what this rank writes: all shards, and of the other tensors about as many bytes as any other rank."""
    mine = [name for name, tensor in tensors.items() if isinstance(tensor, DTensor)]
    load = [0] * place.world
    alike = [name for name in tensors if not isinstance(tensors[name], DTensor)]
    for name in sorted(alike, key=lambda name: (-tensors[name].nbytes, name)):
        rank = load.index(min(load))
        load[rank] += tensors[name].nbytes + 64  # small ones cost too
        if rank == place.rank:
            mine.append(name)
    return mine


def _copied(name: str, tensor: Tensor, buffers: dict[str, Tensor]) -> Tensor:
    """The tensor, or its shard, in host memory. From a GPU the copy may be under way when this returns."""
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
    if name not in buffers:
        pinned = local.device.type == "cuda"
        buffers[name] = torch.empty(local.shape, dtype=local.dtype, device="cpu", pin_memory=pinned)
    return buffers[name].copy_(local, non_blocking=True)


def _on_host(copy: Tensor, like: Tensor, mesh: DeviceMesh) -> Tensor:
    """A copied shard as the shard of the whole that it is; other tensors as they are."""
    if not isinstance(like, DTensor):
        return copy
    return DTensor.from_local(copy, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def write_checkpoint(folder: Path, shot: Snapshot, place: Place, keep: int, for_good: ForGood = never) -> Path:
    """Write a snapshot atomically, each rank its share; then remove all but the `keep` newest and those `for_good`.

    Raises:
        MachineError: there is no room, or another rank could not write. OSError and others: this rank could not.
    """
    path = folder / f"step-{shot.step:09d}"
    with ExitStack() as stack:

        def prepare() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"*{PARTIAL}"):
                shutil.rmtree(leftover)
            if (free := shutil.disk_usage(folder).free) < shot.bytes + SLACK_BYTES:
                raise MachineError(f"the disk is full: it takes {shot.bytes / 1e9:.3g} GB, {free / 1e9:.3g} are free")
            stack.enter_context(atomic_folder(path))

        def write_model() -> None:
            save_weights(shot.config, shot.weights, partial)
            if shot.average:
                save_file(shot.average, partial / AVERAGE)
            write_json(partial / STATE, {"format": FORMAT, "step": shot.step} | shot.state)

        def write_manifest() -> None:
            write_json(partial / MANIFEST, {name: entry for part in parts for name, entry in sorted(part.items())})
            stack.close()  # syncs and renames

        partial = path.with_name(path.name + PARTIAL)
        _together(place, prepare if place.first else None)
        _together(place, write_model if place.first else None)
        _write_shares(shot.tensors, partial / OPTIMIZER, place)
        parts = _together(place, lambda: sums(partial, place))
        _together(place, write_manifest if place.first else None)
    if place.first:
        remove_old(folder, keep, for_good)
    return path


def _write_shares(tensors: dict[str, Tensor], folder: Path, place: Place) -> None:
    """Every rank writes its tensors; an error of one is raised in all."""
    try:
        save(
            cast(dict[str, Any], tensors),
            storage_writer=_Writer(folder),
            process_group=place.behind,
            no_dist=place.world == 1,
        )
    except CheckpointException as error:  # a BaseException, which wraps the causes of all ranks
        raise next((cause for cause, _ in error.failures.values() if isinstance(cause, Exception)), error) from None


class _Writer(FileSystemWriter):
    """DCP's files without the random name of each save in them: the same state is the same bytes."""

    def storage_meta(self) -> None:
        return None


def _together(place: Place, work: Callable[[], Any] | None) -> list[Any]:
    """Do this rank's part of the work and wait for all; what each rank's part returned.

    Raises:
        this rank's own error; MachineError: another rank's.
    """
    own: Exception | None = None
    result = None
    try:
        result = work() if work is not None else None
    except Exception as error:
        own = error
    if place.world == 1:
        answers = [(None, result)]
    else:
        answers = [(None, None)] * place.world
        dist.all_gather_object(answers, (own and _reason(own), result), group=place.behind)
    if own is not None:
        raise own
    if reasons := [reason for reason, _ in answers if reason]:
        raise MachineError(str(reasons[0]))
    return [result for _, result in answers]


def _reason(error: Exception) -> str:
    """Why a checkpoint could not be written, in one line."""
    text = " ".join(str(error).split())
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text:
        return "the disk is full"
    return text if isinstance(error, MachineError) else f"{type(error).__name__}: {text}"


# ---- loading --------------------------------------------------------------------------------------------------------


def load_checkpoint(
    path: Path,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Tensor] | None = None,
    average: Mapping[str, Tensor] | None = None,
    tokenizer: str | None = None,
) -> dict[str, Any]:
    """Load weights, average, optimizer state and `extra` into place; returns what was saved as `state`, with `step`.

    The model may be spread over other ranks, or in another way, than the one that was saved. A checkpoint without an
    optimizer (imported weights) leaves the optimizer and `extra` as they are.

    Raises:
        UserError: see `refuse_other`; or the checkpoint lacks something of `extra`.
    """
    refuse_other(path, model.config, tokenizer)
    load_weights(path, model, average)
    state = {key: value for key, value in read_json(path / STATE).items() if key != "format"}
    if not (path / OPTIMIZER).is_dir():  # see `seal`; the manifest tells a lost one from one that never was
        return state
    parameters = dict(model.named_parameters())
    reader = FileSystemReader(path / OPTIMIZER)
    wanted: dict[str, Tensor] = {f"extra.{name}": tensor for name, tensor in (extra or {}).items()}
    stored = reader.read_metadata().state_dict_metadata
    if missing := sorted(wanted.keys() - stored.keys()):
        raise UserError(f"{path}: has no {missing[0].removeprefix('extra.')}; it was saved with other settings")
    optimizer.state.clear()
    for name, entry in stored.items():
        if name.startswith("optimizer."):
            _, key, owner = name.split(".", 2)
            parameter, properties = parameters[owner], cast(Any, entry)
            target = (
                torch.empty_like(parameter, dtype=properties.properties.dtype, requires_grad=False)
                if properties.size == parameter.shape
                else torch.empty(properties.size, dtype=properties.properties.dtype, device=parameter.device)
            )
            optimizer.state[parameter][key] = wanted[name] = target
    load(cast(dict[str, Any], wanted), storage_reader=reader, no_dist=True)  # each rank by itself
    return state


@torch.no_grad()
def load_weights(path: Path, model: Transformer, average: Mapping[str, Tensor] | None = None) -> None:
    """Load the weights of a model folder, and the averaged ones (or the weights again), into place."""
    parameters = dict(model.named_parameters())
    for name, tensor in read_tensors(path, average=False):
        if name in parameters:  # else derived, or the copy of a tied head
            parameters[name].copy_(_spread(tensor, parameters[name]))
    if average:
        for name, tensor in read_tensors(path, average=True):
            if name in average:
                average[name].copy_(_spread(tensor, average[name]))


def _spread(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of `like`, or the shard of it that stands there."""
    if not isinstance(like, DTensor):
        return tensor.to(like.device)
    # every rank has read it: nothing is sent
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)

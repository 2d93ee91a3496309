"""The training steps that train_step.py compares, and a process that makes them, one at a time, when asked.

    python train_step_worker.py     # lines of JSON in: open a cell, make a step, close it; lines of JSON out

Each library has a process of its own, since peers need other environments (train_step.py says how to make them). Only
what a library needs is imported.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="train-step-")  # compile times are cold ones

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

Shape = types.SimpleNamespace  # layers, hidden, heads, kv_heads, ffn, vocab_size, context_length
Step = Callable[[Tensor], Tensor]  # int64 [B, T] -> mean loss, of the weights before the step
ADAMW = {"lr": 6e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}
# Groups of a profile: of the first of these whose words are in the name of an operator or of one that called it.
GROUPS = {
    "attention": ("attention", "sdpa", "fmha", "flash"),
    "head and loss": ("linearcrossentropy", "nll_loss", "softmax", "scatter", "gather"),
    "optimizer, clipping": ("adam", "foreach", "optimizer", "linalg_vector_norm", "clip", "lpnorm", "multi_tensor"),
    "matrix products": ("aten::mm", "aten::addmm", "aten::_scaled_mm", "gemm", "nvjet", "cutlass", "cublas"),
    "norms, rotary, SwiGLU, casts": ("compiledfxgraph", "triton", "compiledfunction", "compiled region"),
}


torch._dynamo.config.recompile_limit = 64  # many cells compile the same function


# ---- the libraries ---------------------------------------------------------------------------------------------------


@functools.cache
def initial_weights(*shape: Any) -> dict[str, Tensor]:
    """Our initial weights of a shape, which every Llama here begins with: drawn once."""
    from xmodel.model.transformer import Transformer
    from xmodel.recipe.settings import Model

    model = Transformer(Model(**dict(shape)))
    model.init_weights(seed=0)
    return model.state_dict()


def our_step(shape: Shape, mode: str, precision: str, device: str, options: dict[str, str]) -> tuple[nn.Module, Step]:
    """A step as `xmodel pretrain` makes it. Options: attention, checkpointing, loss=plain."""
    from xmodel.model.attention import choose_attention
    from xmodel.model.fp8 import check_fp8
    from xmodel.model.transformer import Transformer, compile_model
    from xmodel.pretrain.optim import clip_grad_norm, guarded_step, make_optimizer
    from xmodel.recipe.settings import Model, Pretrain

    settings = Model(**vars(shape))
    with torch.device(device):
        model = Transformer(settings)
    model.load_state_dict(initial_weights(*vars(shape).items()))
    model.to(device)
    model.compute_dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    if precision == "fp8":
        check_fp8(settings, shape.context_length, torch.device(device))
        model.fp8 = True
    heads = shape.heads, shape.kv_heads, shape.hidden // shape.heads
    wanted = options.get("attention", "auto")
    model.attention = choose_attention(wanted, *heads, model.compute_dtype, torch.device(device))
    model.checkpointing = options.get("checkpointing", "none")
    if mode == "compiled":
        compile_model(model)
    optimizer = make_optimizer(model, Pretrain(peak_lr=ADAMW["lr"]))
    plain = options.get("loss") == "plain"

    def summed_loss(tokens: Tensor) -> Tensor:
        targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -100)), dim=1)
        if plain:
            return F.cross_entropy(model(tokens).flatten(0, 1).float(), targets.flatten(), reduction="sum")
        return model.loss(tokens, targets)

    def step(tokens: Tensor) -> Tensor:
        loss = summed_loss(tokens) / tokens[:, 1:].numel()
        loss.backward()
        guarded_step(optimizer, clip_grad_norm(model.parameters(), 1.0))
        optimizer.zero_grad()
        return loss.detach()

    model.summed_loss = summed_loss  # type: ignore[assignment] (for Cell.kept_bytes)
    return model, step


def usual_step(model: nn.Module, mode: str, precision: str, device: str, logits: Callable[..., Any]) -> Step:
    """The loop that most people write: autocast (or bf16-true: weights in bf16), clipping at 1.0, fused AdamW."""
    if precision == "bf16-true":
        model.to(torch.bfloat16)
    run: Any = torch.compile(model, dynamic=False) if mode == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)

    def step(tokens: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
            loss = logits(run, tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def shifted(logits: Tensor, tokens: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


def transformers_step(
    shape: Shape, mode: str, precision: str, device: str, options: dict[str, str]
) -> tuple[nn.Module, Step]:
    """Hugging Face's LlamaForCausalLM, as its documentation trains it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from xmodel.model.config import to_hf
    from xmodel.recipe.settings import Model

    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**to_hf(Model(**vars(shape)))))
    model.load_state_dict(initial_weights(*vars(shape).items()))
    model.train()
    return model, usual_step(
        model, mode, precision, device, lambda run, tokens: run(input_ids=tokens, labels=tokens, use_cache=False).loss
    )


def litgpt_step(
    shape: Shape, mode: str, precision: str, device: str, options: dict[str, str]
) -> tuple[nn.Module, Step]:
    """litgpt's GPT in the Llama configuration, and the loss of its pretraining."""
    from litgpt.config import Config  # pyright: ignore[reportMissingImports] - a peer
    from litgpt.model import GPT  # pyright: ignore[reportMissingImports] - a peer
    from litgpt.utils import chunked_cross_entropy  # pyright: ignore[reportMissingImports] - a peer

    config = Config(
        n_layer=shape.layers, n_head=shape.heads, n_query_groups=shape.kv_heads, n_embd=shape.hidden,
        intermediate_size=shape.ffn, padded_vocab_size=shape.vocab_size, vocab_size=shape.vocab_size,
        block_size=shape.context_length, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", bias=False,
        parallel_residual=False, rotary_percentage=1.0,
    )  # fmt: skip
    with torch.device(device):
        model = GPT(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)

    def loss(run: Any, tokens: Tensor) -> Tensor:
        return chunked_cross_entropy(run(tokens)[:, :-1], tokens[:, 1:], chunk_size=0)

    return model, usual_step(model, mode, precision, device, loss)


def nanochat_step(
    shape: Shape, mode: str, precision: str, device: str, options: dict[str, str]
) -> tuple[nn.Module, Step]:
    """nanochat's GPT as it is (relu², 4 x hidden; value embeddings; QK norm) at our width, and its own step: Muon for
    matrices, AdamW for the rest, no clipping; with optimizer=adamw fused AdamW for all. Full context in every layer."""
    from nanochat.gpt import GPT, GPTConfig  # pyright: ignore[reportMissingImports] - a peer

    config = GPTConfig(
        sequence_len=shape.context_length, vocab_size=shape.vocab_size, n_layer=shape.layers, n_head=shape.heads,
        n_kv_head=shape.kv_heads, n_embd=shape.hidden, window_pattern="L",
    )  # fmt: skip
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device=device)
    model.init_weights()
    if options.get("optimizer") == "adamw":
        optimizer: Any = torch.optim.AdamW(model.parameters(), **ADAMW)
    else:
        optimizer = model.setup_optimizer()
    run: Any = torch.compile(model, dynamic=False) if mode == "compiled" else model

    def step(tokens: Tensor) -> Tensor:
        targets = torch.cat((tokens[:, 1:], torch.full_like(tokens[:, :1], -1)), dim=1)
        loss = run(tokens, targets)
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return model, step


class PlainBlock(nn.Module):
    """A Llama block of nn.Linear and F.scaled_dot_product_attention, as a tutorial writes it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.size = (shape.heads, shape.kv_heads, shape.kv_heads), shape.hidden // shape.heads
        self.norms = nn.ModuleList(nn.RMSNorm(shape.hidden, eps=1e-5) for _ in range(2))
        self.qkv = nn.Linear(shape.hidden, sum(self.heads) * self.size, bias=False)
        self.out = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.up = nn.Linear(shape.hidden, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (-1, self.size)).transpose(1, 2).split(self.heads, dim=1)
        q, k = (y * cos + torch.cat((-y[..., self.size // 2 :], y[..., : self.size // 2]), -1) * sin for y in qkv[:2])
        y = F.scaled_dot_product_attention(q.to(qkv[2]), k.to(qkv[2]), qkv[2], is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = self.up(self.norms[1](x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Plain(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        size = shape.hidden // shape.heads
        self.embed, self.norm = nn.Embedding(shape.vocab_size, shape.hidden), nn.RMSNorm(shape.hidden, eps=1e-5)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.layers))
        self.head = nn.Linear(shape.hidden, shape.vocab_size, bias=False)
        angles = torch.outer(torch.arange(shape.context_length), 1e4 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def plain_step(shape: Shape, mode: str, precision: str, device: str, options: dict[str, str]) -> tuple[nn.Module, Step]:
    """A plain PyTorch Llama, without any other library."""
    with torch.device(device):
        model = Plain(shape)
    return model, usual_step(model, mode, precision, device, lambda run, tokens: shifted(run(tokens), tokens))


LIBRARIES = {
    "xmodel": our_step,
    "transformers": transformers_step,
    "litgpt": litgpt_step,
    "nanochat": nanochat_step,
    "plain": plain_step,
}


# ---- data, for the cells that read it --------------------------------------------------------------------------------


def shards(shape: Shape) -> Any:
    """The training data of a run, over a file of random tokens: 64 MB, so that it is not in the processor's cache."""
    import numpy as np

    from xmodel.pretrain.data import TrainingData
    from xmodel.tokens.order import DataOrder
    from xmodel.tokens.shards import TOKEN, TokenSource

    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        np.random.default_rng(0).integers(shape.vocab_size, size=32 << 20, dtype=TOKEN).tofile(file.name)
        source = TokenSource("random", [np.memmap(file.name, TOKEN, mode="r").view(np.ndarray)])
    data = TrainingData.__new__(TrainingData)  # without a folder and its manifest
    data.sequence_length, data.sources = shape.context_length, {"random": source}  # type: ignore[assignment]
    data.order = DataOrder({"random": source.n_windows(shape.context_length)}, {"random": 1.0}, 0)
    return data


def read_ahead(data: Any, batch: int, device: str) -> Any:
    """The batches that the loop would get."""
    from concurrent.futures import ThreadPoolExecutor

    from xmodel.pretrain.data import Batches
    from xmodel.pretrain.parallel import Place
    from xmodel.recipe.settings import Pretrain

    settings = Pretrain(steps=10**6, global_batch=batch)
    return Batches(data, settings, Place(0, 1, torch.device(device)), 0, 0, ThreadPoolExecutor(1))


# ---- a cell ----------------------------------------------------------------------------------------------------------


class Cell:
    """One library in one mode: its model, and its steps on batches that follow from their number."""

    def __init__(self, name: str, shape: dict[str, Any], batch: int, device: str) -> None:
        library, mode, precision, *rest = name.split("/")
        self.options = dict(option.split("=") for option in rest)
        self.shape, self.batch, self.device = Shape(**shape), int(self.options.get("batch", batch)), device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.model, self.step = LIBRARIES[library](self.shape, mode, precision, device, self.options)
        self.data = shards(self.shape) if "data" in self.options else None
        self.ahead = read_ahead(self.data, self.batch, device) if self.options.get("data") == "ahead" else None

    def tokens(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(number)
        size = (self.batch, self.shape.context_length)
        return torch.randint(self.shape.vocab_size, size, generator=generator).to(self.device)

    def timed(self, number: int, clock: str) -> dict[str, Any]:
        """One step: seconds by the clock, loss; on CUDA the most memory so far. With the option data, the batch is
        read from a memory map in that time, or has been read ahead."""
        tokens = self.tokens(number)
        if self.options.get("gc") == "on":
            gc.enable()
        else:
            gc.collect()
            gc.disable()
        now = getattr(time, clock)
        started = now()
        if self.data is not None:
            rows = next(self.ahead) if self.ahead else torch.from_numpy(self.data.batch(number, self.batch, 0, 1))
            tokens = rows[:, :-1].to(self.device)
        loss = self.step(tokens).item()  # .item() waits for the device
        seconds = now() - started
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
        return {"seconds": seconds, "loss": loss, "peak_bytes": peak, "tokens": tokens.numel()}

    def kept_bytes(self) -> int:
        """Bytes of distinct storages that live from the forward to the backward pass of our step, parameters apart:
        of all that operators make when eager, of what autograd keeps when compiled (whose operators nobody sees)."""
        own = {p.untyped_storage()._cdata for p in (*self.model.parameters(), *self.model.buffers())}
        made: dict[int, tuple[StorageWeakRef, int]] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            return tensor

        class Made(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                return tree_map_only(Tensor, note, func(*args, **(kwargs or {})))

        compiled = self.model.compiled_block is not None
        watch = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor) if compiled else Made()
        tokens = self.tokens(0)
        with watch:
            loss = self.model.summed_loss(tokens)  # type: ignore[operator]
        kept = sum(size for storage, size in made.values() if not storage.expired())
        del loss
        return kept

    def profile(self) -> dict[str, float]:
        """Share of the time of one step by group of operators; on CUDA of the device's time."""
        activity = torch.profiler.ProfilerActivity
        kinds = [activity.CPU] + ([activity.CUDA] if self.device == "cuda" else [])
        tokens = self.tokens(0)
        with torch.profiler.profile(activities=kinds) as profiler:
            self.step(tokens).item()
        sums: dict[str, float] = {}
        for event in profiler.events() or []:
            on_device = event.device_type.name != "CPU"
            if on_device != (self.device == "cuda"):
                continue
            names, parent = [event.name], event.cpu_parent
            while parent is not None:
                names.append(parent.name)
                parent = parent.cpu_parent
            took = event.time_range.elapsed_us() if on_device else event.self_cpu_time_total
            path = "\n".join(names).lower()
            group = next((key for key, words in GROUPS.items() if any(word in path for word in words)), "other")
            sums[group] = sums.get(group, 0) + took
        total = sum(sums.values()) or 1
        return {group: round(took / total, 4) for group, took in sorted(sums.items(), key=lambda item: -item[1])}


def serve() -> None:
    """Answer requests, a line of JSON each, on the standard output that the process began with."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    cells: dict[str, Cell] = {}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        name = request["cell"]
        if request["do"] == "open":
            torch.set_num_threads(request["threads"])
            cells[name] = Cell(name, request["shape"], request["batch"], request["device"])
            versions = {"torch": torch.__version__}
            for library in ("transformers", "litgpt"):
                with contextlib.suppress(PackageNotFoundError):
                    versions |= {library: version(library)} if library in name else {}
            return {"parameters": sum(p.numel() for p in cells[name].model.parameters()), "versions": versions}
        if request["do"] == "close":
            del cells[name]
            gc.collect()
            torch.compiler.reset()
            if request["device"] == "cuda":
                torch.cuda.empty_cache()
            return {}
        if request["do"] == "step":
            return cells[name].timed(request["number"], request["clock"])
        if request["do"] == "kept":
            return {"kept_bytes": cells[name].kept_bytes()}
        return {"profile": cells[name].profile()}

    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = answer(request)
        except Exception as error:  # a peer that is missing or runs out of memory is a result, too
            cells.pop(request["cell"], None)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            text = str(error).strip().splitlines() or [""]
            reply = {"error": f"{type(error).__name__}: {text[0][:200]}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()

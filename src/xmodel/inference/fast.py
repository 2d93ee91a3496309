"""Fast decoding on a CPU: what `prepare` does to a model, so that its decoding steps run in our own kernels.

Legend of the shape suffixes: B rows, T new tokens of each (one, here), N = B, D hidden width, F width of the SwiGLU,
O outputs and I inputs of a product, S cached and new tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xmodel.errors import UserError
from xmodel.model.cache import KVCache, Layout
from xmodel.model.cells import Rows
from xmodel.model.transformer import Transformer

WEIGHTS = ("auto", "int8")
HEAD_ROWS = 256  # more at once are not decoding


def prepare(model: Any, weights: str = "auto") -> Any:
    """Make a model's decoding steps fast; the same model comes back.

    Steps of one token in every row, without gradients and with a cache, then run in kernels of our own on a CPU, for
    any number of rows, and so does the output head for up to HEAD_ROWS rows. What is computed for a row has the same
    bits whatever other rows there are. Everything else (a prompt, training, steps whose rows share a beginning) is left
    to PyTorch. On a GPU, and for models of other families, nothing changes. Parameters become tensors of the dtype that
    the model computes in.

    Args:
        weights: "auto": as they are. "int8": the blocks' weights and the output head as 8-bit integers with one scale
            for each output; their memory is freed. The embedding stays as it is.

    Raises:
        UserError: int8 for a model that cannot have it.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights {weights!r}: it has to be {' or '.join(WEIGHTS)}")
    if not isinstance(model, Transformer):
        if weights == "int8":
            raise UserError("weights int8: only for models of our own family (Llama, Qwen3); auto runs this one")
        return model
    if model.device.type != "cpu":
        if weights == "int8":
            raise UserError(f"weights int8: the model is on {model.device}, and this is for CPUs; auto runs it there")
        return model
    if model.compute_dtype not in (torch.float32, torch.bfloat16):
        if weights == "int8":
            raise UserError(f"weights int8: the model computes in {model.compute_dtype}; bf16 and fp32 can be had")
        return model
    if model.decoder is None:  # a second call changes nothing
        model.decoder = Decoder(model.eval(), weights == "int8")
    return model


class HugePages:
    """One piece of memory for all weights, in pages of 2 MiB where the system has them (Linux).

    A step reads every weight once. With pages of 4 KiB a core waits for their addresses: measured, it reads a third
    less (benchmarks/README.md).
    """

    def __init__(self, size: int) -> None:
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            self.memory = mmap.mmap(-1, max(size, 1))
        else:
            self.memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            with contextlib.suppress(OSError):  # a kernel without them
                self.memory.madvise(mmap.MADV_HUGEPAGE)
        self.used = 0

    def copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A dense copy of a tensor in this memory, as `dtype`."""
        place = torch.frombuffer(self.memory, dtype=dtype, count=tensor.numel(), offset=self.used).view(tensor.shape)
        self.used += page_bytes(tensor.numel() * dtype.itemsize)
        return place.copy_(tensor)


def page_bytes(size: int) -> int:
    """What so many bytes take of `HugePages`: whole cache lines."""
    return -(-size // 64) * 64


class Int8Weight:
    """A weight as 8-bit integers and a scale for each output, in the place of a parameter."""

    def __init__(self, weight_OI: Tensor, memory: HugePages) -> None:
        values_OI = weight_OI.float()
        scales_O = values_OI.abs().amax(1).clamp_min(1e-30) / 127
        self.scales_O = scales_O.bfloat16().float()  # the same number in both dtypes
        self.integers_OI = memory.copy((values_OI / self.scales_O[:, None]).round_(), torch.int8)
        self.shape = self.integers_OI.shape

    def to(self, dtype: torch.dtype) -> Tensor:
        """As a tensor of numbers, for products of many tokens."""
        return self.integers_OI.to(dtype).mul_(self.scales_O[:, None].to(dtype))


class Decoder:
    """Decoding steps of a `Transformer` on a CPU. Its weights may change in place, but not be replaced."""

    def __init__(self, model: Transformer, int8: bool) -> None:
        from xmodel.inference import cpu_decode as kernels

        self.kernels, self.model, config = kernels, model, model.config
        self.dtype = model.compute_dtype
        self.wide = self.dtype == torch.float32
        self.kind = kernels.INT8 if int8 else kernels.FLOAT32 if self.wide else kernels.BFLOAT16
        self.kept: list[Tensor | Int8Weight] = []  # what the tables point to
        blocks: list[Any] = list(model.model.layers)
        modules_L7 = [
            [a.q_proj, a.k_proj, a.v_proj, a.o_proj, m.gate_proj, m.up_proj, m.down_proj]
            for a, m in ((block.self_attn, block.mlp) for block in blocks)
        ]
        tied = config.tied_embeddings
        head = model.model.embed_tokens if tied else model.lm_head
        width = 1 if int8 else self.dtype.itemsize
        sizes = (page_bytes(module.weight.numel() * width) for row in [*modules_L7, [head]] for module in row)
        self.memory = HugePages(sum(sizes))
        places = [[self._place(module) for module in row] for row in modules_L7]
        self.weights_L7, self.scales_L7 = np.moveaxis(np.array(places, np.int64), 2, 0).copy()
        self.head_place = self._place(head, keep=tied)
        norms = [[block.input_layernorm, block.post_attention_layernorm] for block in blocks]
        qk_norms = [[block.self_attn.q_norm, block.self_attn.k_norm] if config.qk_norm else [] for block in blocks]
        self.norms_L2D = _numbers(norms, config.hidden)
        self.qk_norms_LXC = _numbers(qk_norms, config.hidden // config.heads)
        self.final_D = _numbers([[model.model.norm]], config.hidden)[0, 0]
        self.rotary_2PC = model.rotary.numpy()

    def _place(self, module: Any, keep: bool = False) -> tuple[int, int]:
        """Make of a module's weight what the kernels read; the addresses of that and of its scales."""
        weight: Tensor | Int8Weight
        if self.kind == self.kernels.INT8:
            weight = Int8Weight(module.weight.detach(), self.memory)
            if not keep:
                del module.weight
                module.weight = weight
            place = weight.integers_OI.data_ptr(), weight.scales_O.data_ptr()
        else:
            module.weight.data = weight = self.memory.copy(module.weight.data, self.dtype)
            place = weight.data_ptr(), 0
        self.kept.append(weight)
        return place

    def hidden(self, tokens_BT: Tensor, cache: KVCache | Rows | None, layout: Layout | None) -> Tensor | None:
        """As `Transformer.hidden`, for one token in every row; None for what is not a decoding step."""
        if tokens_BT.shape[1] != 1 or cache is None or torch.is_grad_enabled():
            return None
        if layout is not None and (layout.seen_B1TS is None or layout.spans or layout.shared):
            return None
        config, rows = self.model.config, len(tokens_BT)
        if isinstance(cache, Rows):
            keys, values, starts_N = cache.keys_LKXC, cache.values_LKXC, cache.starts_R.numpy() * cache.head_size
        else:
            keys, values = cache.keys_LBKSC, cache.values_LBKSC
            starts_N = np.arange(rows) * keys.stride(1)
        if keys.dtype != self.dtype or keys.stride()[-2:] != (keys.shape[-1], 1) or keys.stride() != values.stride():
            return None
        if layout is None or layout.columns_BT is None:
            columns_N = np.full(rows, cache.length)
        else:
            columns_N = layout.columns_BT[:, 0].numpy()
        if layout is None or layout.seen_B1TS is None:
            length, positions_N, seen_NS = cache.length + 1, columns_N, np.empty((1, 0), np.uint8)
        else:
            length, positions_N = layout.seen_B1TS.shape[-1], layout.positions_BT[:, 0].numpy()
            seen_NS = layout.seen_B1TS.expand(rows, 1, 1, length)[:, 0, 0].contiguous().view(torch.uint8).numpy()
        limits = (columns_N, min(length, keys.shape[-2])), (positions_N, self.rotary_2PC.shape[1])
        if any(a.min() < 0 or a.max() >= limit for a, limit in limits):
            raise IndexError(f"columns {columns_N}, positions {positions_N}: beyond the cache or the position table")
        x_ND = F.embedding(tokens_BT[:, 0], self.model.model.embed_tokens.weight).float()
        hidden, ffn = config.hidden, config.ffn
        width = hidden + 2 * config.kv_heads * (config.hidden // config.heads)
        room = [np.empty((rows, size), np.float32) for size in (hidden, width, ffn, ffn, ffn)]
        out_ND = torch.empty(rows, hidden, dtype=self.dtype)
        self._run(
            self.kernels.decode, len(self.weights_L7) * self.kernels.PHASES + 1, config.heads, config.kv_heads,
            np.float32(config.norm_eps), self.weights_L7, self.scales_L7, self.norms_L2D, self.qk_norms_LXC,
            self.final_D, self.rotary_2PC, np.ascontiguousarray(positions_N), np.ascontiguousarray(columns_N), seen_NS,
            length, keys.data_ptr(), values.data_ptr(), starts_N * keys.element_size(),
            np.array([keys.stride(0), keys.stride(-3)]) * keys.element_size(),
            x_ND.numpy(), *room, out_ND.data_ptr(),
        )  # fmt: skip
        cache.advance(1, layout)
        return out_ND[:, None]

    def head(self, hidden: Tensor) -> Tensor | None:
        """As `Transformer.head`, for the states of few rows; None for more."""
        size, outputs = hidden.shape[-1], self.model.config.vocab_size
        rows = hidden.numel() // size
        if not 0 < rows <= HEAD_ROWS or hidden.dtype != self.dtype or torch.is_grad_enabled():
            return None
        x_ND = hidden.reshape(rows, size).contiguous()
        out_NV = torch.empty(rows, outputs, dtype=self.dtype)
        sums_NV = np.empty((rows, outputs), np.float32)
        self._run(
            self.kernels.multiply, 1, *self.head_place, outputs, size, x_ND.data_ptr(), rows, sums_NV, out_NV.data_ptr()
        )
        return out_NV.view(*hidden.shape[:-1], outputs)

    def _run(self, kernel: Callable[..., None], phases: int, *arguments: Any) -> None:
        """Call a kernel in as many threads as PyTorch has; it returns when the work is done, whoever did it."""
        counters = np.zeros(phases * self.kernels.STRIDE, np.int64)
        for _ in range(torch.get_num_threads() - 1):
            _pool(os.getpid()).submit(kernel, counters, self.kind, self.wide, *arguments)
        kernel(counters, self.kind, self.wide, *arguments)


@lru_cache(1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that help; of this process, since threads do not survive a fork."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")


def _numbers(modules: list[list[Any]], size: int) -> np.ndarray:
    """The vectors of some modules as float32 [L, X, size]."""
    vectors = [[module.weight.detach().float().numpy() for module in row] for row in modules]
    return np.array(vectors, np.float32).reshape(len(modules), -1, size)

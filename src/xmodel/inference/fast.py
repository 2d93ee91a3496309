"""Fast prompts and decoding on a CPU: what `prepare` does to a model, so that both run in our own kernels.

Legend of the shape suffixes: B rows, T new tokens of each, N = B · T, D hidden width, F width of the SwiGLU, O outputs
and I inputs of a product, S cached and new tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xmodel.errors import UserError
from xmodel.model.cache import KVCache, Layout
from xmodel.model.cells import Rows
from xmodel.model.transformer import Transformer

WEIGHTS = ("auto", "int8")


def prepare(model: Any, weights: str = "auto") -> Any:
    """Make a model's prompts and decoding steps fast; the same model comes back.

    What goes through the model without gradients and with a cache then runs in kernels of our own on a CPU, and so does
    the output head. What is computed for a token depends on its own text alone, to the bit, whatever other tokens there
    are and in whatever parts the text comes. Everything else (training, whole texts without a cache) is left to
    PyTorch. On a GPU, and for models of other families, nothing changes. Parameters become tensors of the dtype that
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

    def product(self, x: Tensor) -> Tensor:
        """x · wᵀ: [..., I] -> [..., O], in the dtype of x."""
        from xmodel.inference.cpu_products import INT8

        return multiply(INT8, (self.integers_OI.data_ptr(), self.scales_O.data_ptr()), self.shape[0], x)


class Decoder:
    """A `Transformer` with a cache on a CPU. Its weights may change in place, but not be replaced."""

    def __init__(self, model: Transformer, int8: bool) -> None:
        from xmodel.inference import cpu_forward
        from xmodel.inference import cpu_products as kernels

        self.kernels, self.model, config = kernels, model, model.config
        self.forward, self.phases = cpu_forward.forward, cpu_forward.PHASES * config.layers + 2
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

    def hidden(
        self, tokens_BT: Tensor, cache: KVCache | Rows | None, layout: Layout | None, wanted_W: Tensor | None = None
    ) -> Tensor | None:
        """As `Transformer.hidden`, for tokens with a cache; None for what is left to PyTorch."""
        if cache is None or torch.is_grad_enabled() or (places := _places(tokens_BT, cache, layout)) is None:
            return None
        if isinstance(cache, Rows):
            keys, values, row_stride = cache.keys_LKXC, cache.values_LKXC, 0
        else:
            keys, values, row_stride = cache.keys_LBKSC, cache.values_LBKSC, cache.keys_LBKSC.stride(1)
        if keys.dtype != self.dtype or keys.stride()[-2:] != (keys.shape[-1], 1) or keys.stride() != values.stride():
            return None
        firsts_N, columns_N, positions_N = places.firsts_N, places.columns_N, places.positions_N
        for numbers_N, limit in (
            (firsts_N + columns_N, keys.shape[-2]),
            (firsts_N + places.ends_N - 1, keys.shape[-2]),
            (positions_N, self.rotary_2PC.shape[1]),
        ):
            if numbers_N.min() < 0 or numbers_N.max() >= limit or columns_N.min() < 0:
                where = f"columns {columns_N}, positions {positions_N}"
                raise IndexError(f"{where}: beyond the cache or the position table")
        config, (batch, new) = self.model.config, tokens_BT.shape
        rows, hidden, unit = batch * new, config.hidden, keys.element_size()
        rows_N = np.arange(batch).repeat(new)
        starts_N = (rows_N * row_stride + firsts_N * keys.shape[-1]) * unit
        x_ND = F.embedding(tokens_BT.reshape(-1), self.model.model.embed_tokens.weight).float()
        qkv_NO = np.empty((rows, hidden + 2 * config.kv_heads * keys.shape[-1]), np.float32)
        normed_ND, out_ND = (torch.empty(rows, hidden, dtype=self.dtype) for _ in range(2))
        gated_NF = torch.empty(rows, config.ffn, dtype=self.dtype)
        wanted = np.arange(rows) if wanted_W is None else wanted_W.numpy()
        _run(
            self.forward, self.phases, self.kind, self.wide, config.heads, config.kv_heads, config.ffn,
            np.float32(config.norm_eps), self.weights_L7, self.scales_L7, self.norms_L2D, self.qk_norms_LXC,
            self.final_D, self.rotary_2PC, positions_N, columns_N, places.ends_N, places.seen_NS,
            _stems(layout, batch, new, self.dtype), keys.data_ptr(), values.data_ptr(), starts_N,
            np.array([keys.stride(0), keys.stride(-3)]) * unit, wanted, x_ND.numpy(), qkv_NO, normed_ND.data_ptr(),
            gated_NF.data_ptr(), out_ND.data_ptr(),
        )  # fmt: skip
        cache.advance(new, layout)
        return out_ND.view(batch, new, hidden) if wanted_W is None else out_ND[: len(wanted)]

    def head(self, hidden: Tensor) -> Tensor | None:
        """As `Transformer.head`; None for what is left to PyTorch."""
        if hidden.dtype != self.dtype or torch.is_grad_enabled():
            return None
        return multiply(self.kind, self.head_place, self.model.config.vocab_size, hidden)


class _Places(NamedTuple):
    """Where tokens stand: int64 arrays.

    Attributes:
        firsts_N: the cell of its row in which a token's text begins.
        columns_N: where in its text a token's key goes.
        positions_N: what its rotary angles follow.
        ends_N: how many keys of its text it looks at.
        seen_NS: uint8, which of these it sees; [1, 0]: all.
    """

    firsts_N: np.ndarray
    columns_N: np.ndarray
    positions_N: np.ndarray
    ends_N: np.ndarray
    seen_NS: np.ndarray = np.empty((1, 0), np.uint8)


def _places(tokens_BT: Tensor, cache: KVCache | Rows, layout: Layout | None) -> _Places | None:
    """Where the tokens stand; None for layouts that are left to PyTorch."""
    batch, new = tokens_BT.shape
    behind_N = np.tile(np.arange(cache.length, cache.length + new), batch)
    none_N = np.zeros(batch * new, np.int64)
    if layout is None:
        return _Places(none_N, behind_N, behind_N, behind_N + 1)
    if layout.spans:  # whole prompts one behind the other: PyTorch's attention is the faster one
        return None
    positions_N = layout.positions_BT.numpy().reshape(-1)
    columns_N = behind_N if layout.columns_BT is None else layout.columns_BT.numpy().reshape(-1)
    if isinstance(cache, Rows):
        return _Places(cache.starts_R.numpy(), columns_N, positions_N, columns_N + 1)
    assert layout.seen_B1TS is not None
    length = layout.seen_B1TS.shape[-1]
    seen_NS = layout.seen_B1TS.expand(batch, 1, new, length).reshape(-1, length).view(torch.uint8).numpy()
    return _Places(none_N, columns_N, positions_N, length - seen_NS[:, ::-1].argmax(1), seen_NS)


def _stems(layout: Layout | None, batch: int, new: int, dtype: torch.dtype) -> np.ndarray:
    """The table `stems_N5` of `cpu_forward.forward`."""
    if layout is None or not layout.shared:
        return np.zeros((1, 5), np.int64)
    stems_B5 = np.zeros((batch, 5), np.int64)
    for cache, length, rows_N in layout.shared:
        keys, values = cache.keys_LBKSC, cache.values_LBKSC
        if keys.dtype != dtype or keys.stride() != values.stride() or keys.stride()[-2:] != (keys.shape[-1], 1):
            raise ValueError("a shared beginning has to be in a cache like that of the texts behind it")
        layer_bytes, _, head_bytes = (stride * keys.element_size() for stride in keys.stride()[:3])
        chosen = slice(None) if rows_N is None else rows_N.numpy()
        stems_B5[chosen] = keys.data_ptr(), values.data_ptr(), layer_bytes, head_bytes, length
    return stems_B5.repeat(new, axis=0)


def multiply(kind: int, place: tuple[int, int], outputs: int, x: Tensor) -> Tensor:
    """x · wᵀ: [..., I] -> [..., O], in the dtype of x.

    Args:
        kind: how the weights are kept; place: their address and that of their scales.
    """
    from xmodel.inference import cpu_products as kernels

    x_NI = x.reshape(-1, x.shape[-1]).contiguous()
    out_NO = torch.empty(len(x_NI), outputs, dtype=x.dtype)
    if len(x_NI):
        _run(
            kernels.multiply, 1, kind, x.dtype == torch.float32, *place, outputs, x_NI.shape[1], x_NI.data_ptr(),
            len(x_NI), out_NO.data_ptr(),
        )  # fmt: skip
    return out_NO.view(*x.shape[:-1], outputs)


def _run(kernel: Callable[..., None], phases: int, *arguments: Any) -> None:
    """Call a kernel in as many threads as PyTorch has; it returns when the work is done, whoever did it."""
    from xmodel.inference.cpu_products import STRIDE

    counters = np.zeros(phases * STRIDE, np.int64)
    for _ in range(torch.get_num_threads() - 1):
        _pool(os.getpid()).submit(kernel, counters, *arguments)
    kernel(counters, *arguments)


@lru_cache(1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads that help; of this process, since threads do not survive a fork."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")


def _numbers(modules: list[list[Any]], size: int) -> np.ndarray:
    """The vectors of some modules as float32 [L, X, size]."""
    vectors = [[module.weight.detach().float().numpy() for module in row] for row in modules]
    return np.array(vectors, np.float32).reshape(len(modules), -1, size)

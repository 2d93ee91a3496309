"""Steps of fixed shapes on a GPU, recorded as CUDA graphs and replayed.

A step is hundreds of kernels, most of them shorter than the time that Python takes to launch one. A CUDA graph launches
all of them at once, with the shapes and addresses of its recording (docs.pytorch.org: notes/cuda, CUDA Graphs). So a
step takes a number of rows from `ROWS`, the next one up; what it reads stands in one buffer, filled by one copy from
the host; and spare rows write into a cell that no text has. `decode` is the step: a function of that buffer and of the
cells, with no decision that depends on their contents. It runs on any device, without a graph too. A row is a text that
is going on, or one of several new tokens of a text: keys are stored before any row looks at them.

Legend of the shape suffixes: R rows of a step, D hidden width, F width of the SwiGLU, H query heads, K key/value heads,
G = H / K, C head size, X cells, S cells that a row may see, V vocabulary, P positions, N inputs of the buffer.
"""

from __future__ import annotations

import bisect
import contextlib
import gc
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xmodel.console import log
from xmodel.model.cells import Cells
from xmodel.model.transformer import Transformer

ROWS = [1, 2, 4, 8, *(8 * size << doubled for doubled in range(10) for size in (2, 3))]
LENGTHS = [256 << doubled for doubled in range(20)]  # of rows, for `gathered_attention`
FLASH_DTYPES = torch.bfloat16, torch.float16

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q_RHC, keys_KXC, values_KXC -> [R, H, C]
Attention = Callable[[Tensor, Tensor, int, Tensor], Attend]  # starts_R, lengths_R, longest, keys of a layer -> that
Work = Callable[[], None]


class Layer(NamedTuple):
    """The weights of a block; those that read the same input are one matrix."""

    qkv_OD: Tensor
    out_DD: Tensor
    gate_up_FD: Tensor
    down_DF: Tensor
    input_norm_D: Tensor
    mlp_norm_D: Tensor
    qk_norms_C: tuple[Tensor, Tensor] | None


class Weights:
    """A model's weights as a step reads them; they may change in place, but not be replaced.

    Attributes:
        attention: the kernel of the steps.
        fault: why no graphs are recorded any more; None: none is known.
    """

    def __init__(self, model: Transformer) -> None:
        """Joins weights; the model's parameters become views of the joined ones."""
        config, blocks = model.config, list[Any](model.model.layers)
        self.heads, self.kv_heads, self.head_size = config.heads, config.kv_heads, config.hidden // config.heads
        self.eps, self.dtype = config.norm_eps, model.compute_dtype
        self.layers = [self._layer(block) for block in blocks]
        self.embedding_VD, self.head_VD = model.model.embed_tokens.weight.detach(), model.head_weight.detach()
        self.norm_D = model.model.norm.weight.detach()
        cos_PC, sin_PC = model.rotary
        self.rotary_2PC = torch.stack((torch.cat((cos_PC, cos_PC), -1), torch.cat((-sin_PC, sin_PC), -1)))
        self.attention = choose_attention(self.heads, self.kv_heads, self.head_size, self.dtype, model.device)
        self.fault: str | None = None

    @property
    def packs(self) -> bool:
        """Whether the tokens of a prompt may be the rows of a step: where their keys are not copied for each."""
        return self.attention is flash_attention and self.fault is None

    def _layer(self, block: Any) -> Layer:
        attention, mlp = block.self_attn, block.mlp
        norms = (attention.q_norm.weight.detach(), attention.k_norm.weight.detach()) if attention.qk_norm else None
        return Layer(
            _joined(attention.q_proj, attention.k_proj, attention.v_proj),
            attention.o_proj.weight.detach(),
            _joined(mlp.gate_proj, mlp.up_proj),
            mlp.down_proj.weight.detach(),
            block.input_layernorm.weight.detach(),
            block.post_attention_layernorm.weight.detach(),
            norms,
        )


def _joined(*modules: Any) -> Tensor:
    weight_OD = torch.cat([module.weight.detach() for module in modules])
    for module, part_OD in zip(modules, weight_OD.split([len(module.weight) for module in modules]), strict=True):
        module.weight.data = part_OD
    return weight_OD


def weights_of(model: Any) -> Weights | None:
    """The weights of a model whose steps may be graphs; None for others.

    These are models of our own family on a GPU that are not being trained: all parameters are plain tensors of the
    dtype that the model computes in.
    """
    if not isinstance(model, Transformer) or model.device.type != "cuda" or model.training:
        return None
    if model.joined is None:
        if any(type(each.data) is not Tensor or each.dtype != model.compute_dtype for each in model.parameters()):
            return None
        model.joined = Weights(model)
    return model.joined


def decode(weights: Weights, cells: Cells, inputs_NR: Tensor, longest: int, logits_RV: Tensor) -> None:
    """A step: keys and values of each row's token go into the cells, the logits of what follows into `logits_RV`.

    Args:
        inputs_NR: int64: of each row its token, that one's position and cell, the first cell of the row's text, and how
            many it sees, its own among them.
        longest: no row sees more.
    """
    tokens_R, positions_R, cells_R, starts_R, lengths_R = inputs_NR
    cos_R1C, sin_R1C = weights.rotary_2PC.index_select(1, positions_R).unsqueeze(2)
    attend = weights.attention(starts_R, lengths_R, longest, cells.keys_LKXC[0])
    x_RD = F.embedding(tokens_R, weights.embedding_VD)
    for layer, keys_KXC, values_KXC in zip(weights.layers, cells.keys_LKXC, cells.values_LKXC, strict=True):
        normed_RD = _norm(x_RD, layer.input_norm_D, weights.eps)
        qkv_RHC = F.linear(normed_RD, layer.qkv_OD).unflatten(-1, (-1, weights.head_size))
        qk_RHC, v_RKC = qkv_RHC.split((weights.heads + weights.kv_heads, weights.kv_heads), dim=1)
        if layer.qk_norms_C is not None:
            parts = zip(qk_RHC.split((weights.heads, weights.kv_heads), dim=1), layer.qk_norms_C, strict=True)
            qk_RHC = torch.cat([_norm(part_RHC, norm_C, weights.eps) for part_RHC, norm_C in parts], dim=1)
        left_RHC, right_RHC = qk_RHC.chunk(2, dim=-1)
        turned_RHC = torch.empty(qk_RHC.shape, dtype=qk_RHC.dtype, device=qk_RHC.device)
        torch.addcmul(  # in float32, then rounded
            qk_RHC * cos_R1C, torch.cat((right_RHC, left_RHC), dim=-1), sin_R1C, out=turned_RHC
        )
        q_RHC, k_RKC = turned_RHC.split((weights.heads, weights.kv_heads), dim=1)
        keys_KXC.index_copy_(1, cells_R, k_RKC.transpose(0, 1))
        values_KXC.index_copy_(1, cells_R, v_RKC.transpose(0, 1))
        x_RD.addmm_(attend(q_RHC, keys_KXC, values_KXC).flatten(1), layer.out_DD.t())
        normed_RD = _norm(x_RD, layer.mlp_norm_D, weights.eps)
        gate_RF, up_RF = F.linear(normed_RD, layer.gate_up_FD).chunk(2, dim=-1)
        x_RD.addmm_(F.silu(gate_RF).mul_(up_RF), layer.down_DF.t())
    torch.mm(_norm(x_RD, weights.norm_D, weights.eps), weights.head_VD.t(), out=logits_RV)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


def flash_attention(starts_R: Tensor, lengths_R: Tensor, longest: int, keys_KXC: Tensor) -> Attend:
    """FlashAttention 2 over the cells where they lie (arXiv 2307.08691, arXiv 2311.01282 for one query): no key is
    copied or read that its row does not see. bf16 and fp16 on a GPU.

    PyTorch's `varlen_attn` calls the same operator, but has `seqused_k` only from 2.12 on.
    """
    queries, starts = torch.arange(len(starts_R) + 1, dtype=torch.int32, device=starts_R.device), starts_R.int()
    starts, used_R = F.pad(starts, (0, 1)), lengths_R.int()  # the end of the last text: `seqused_k` takes its place

    def attend(q_RHC: Tensor, keys_KXC: Tensor, values_KXC: Tensor) -> Tensor:
        keys_XKC, values_XKC = keys_KXC.transpose(0, 1), values_KXC.transpose(0, 1)
        return torch.ops.aten._flash_attention_forward(
            q_RHC, keys_XKC, values_XKC, queries, starts, 1, longest, 0.0, False, False, seqused_k=used_R
        )[0]

    return attend


def gathered_attention(starts_R: Tensor, lengths_R: Tensor, longest: int, keys_KXC: Tensor) -> Attend:
    """Attention over copies of the cells that each row sees, in any dtype on any device.

    What a row does not see is read from the last cell, which no text has: neither time nor another text's numbers go
    into it.
    """
    columns_S = torch.arange(longest, device=starts_R.device)
    unseen_RS = columns_S >= lengths_R[:, None]
    index_RS = (starts_R[:, None] + columns_S).masked_fill_(unseen_RS, keys_KXC.shape[1] - 1)
    bias_RS = torch.zeros(index_RS.shape, dtype=keys_KXC.dtype, device=keys_KXC.device)
    bias_R11S = bias_RS.masked_fill_(unseen_RS, -math.inf)[:, None, None]

    def attend(q_RHC: Tensor, keys_KXC: Tensor, values_KXC: Tensor) -> Tensor:
        q_RKGC = q_RHC.unflatten(1, (len(keys_KXC), -1))  # heads that share a key stand where queries do
        k_RKSC, v_RKSC = (x_KXC[:, index_RS].transpose(0, 1) for x_KXC in (keys_KXC, values_KXC))
        return F.scaled_dot_product_attention(q_RKGC, k_RKSC, v_RKSC, attn_mask=bias_R11S).flatten(1, 2)

    return attend


def choose_attention(heads: int, kv_heads: int, head_size: int, dtype: torch.dtype, device: torch.device) -> Attention:
    """`flash_attention` where this machine's gives what `gathered_attention` gives, else that."""
    if device.type != "cuda" or dtype not in FLASH_DTYPES:
        return gathered_attention
    draw = torch.Generator(device).manual_seed(0)
    keys_KXC, values_KXC = torch.randn(2, kv_heads, 512, head_size, dtype=dtype, device=device, generator=draw)
    far = 0.0
    try:
        for copies in (1, 100):  # few rows: their keys are split among the GPU's processors; many: they are not
            starts_R, lengths_R = torch.tensor([[0, 64, 448] * copies, [33, 300, 1] * copies], device=device)
            plan = starts_R, lengths_R, 320, keys_KXC
            q_RHC = torch.randn(3 * copies, heads, head_size, dtype=dtype, device=device, generator=draw)
            right_RHC, found_RHC = (
                attention(*plan)(q_RHC, keys_KXC, values_KXC) for attention in (gathered_attention, flash_attention)
            )
            far = max(far, (found_RHC - right_RHC).abs().nan_to_num(math.inf).max().item())
    except Exception as error:  # what a build without the kernel, or a GPU that it does not know, raises
        log(f"decoding: without flash attention ({_line(error)})")
        return gathered_attention
    if far > 0.05:  # of values of about 1; bf16 rounds them by 0.004
        log(f"decoding: without flash attention (its results are {far:.2g} off)")
        return gathered_attention
    return flash_attention


class Graphs:
    """The steps of the rows of some cells. For one thread at a time.

    Attributes:
        rows, lengths: sizes of steps.
        recorded: by size what replays it; None: one step had that size.
    """

    def __init__(
        self,
        weights: Weights,
        cells: Cells,
        rows: int,
        capacity: int,
        record: Callable[[Work], Work] | None = None,
    ) -> None:
        """Room for steps of at most `rows` rows of texts of at most `capacity` tokens.

        Args:
            cells: the last one belongs to no text.
            record: makes of some work a function that does it again. None: a CUDA graph.
        """
        device = cells.keys_LKXC.device
        self.weights, self.cells = weights, cells
        self.rows = _up_to(ROWS, rows)
        self.lengths = [capacity] if weights.attention is flash_attention else _up_to(LENGTHS, capacity)
        self.inputs = torch.zeros(5 * rows, dtype=torch.int64, device=device)
        self.logits_RV = torch.empty(rows, len(weights.head_VD), dtype=weights.dtype, device=device)
        self.record = record or Recorder(device)
        self.recorded: dict[tuple[int, int], Work | None] = {}

    def step(self, tokens: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> Tensor | None:
        """Run one token of every row; the logits [R, V] of what follows.

        Args:
            tokens, starts, lengths: of the rows: the new token, the first cell of its text, and the number of tokens
                before it.

        Returns:
            None when there are too many rows, or graphs cannot be had; the text's own tokens are as before then.
        """
        count = len(tokens)
        if self.weights.fault is not None or count > self.rows[-1]:
            return None
        rows = self.rows[bisect.bisect_left(self.rows, count)]
        longest = self.lengths[bisect.bisect_left(self.lengths, max(lengths) + 1)]
        spare, last = rows - count, self.cells.keys_LKXC.shape[2] - 1
        columns = zip(tokens, starts, lengths, strict=True)
        texts = [(token, length, start + length, start, length + 1) for token, start, length in columns]
        numbers = torch.tensor([*texts, *[(0, 0, last, last, 1)] * spare], dtype=torch.int64).t().contiguous()
        try:
            # Memory from the pinning allocator is not used again before the copy is done.
            pinned = numbers.pin_memory() if self.inputs.is_cuda else numbers
            self._inputs(rows).copy_(pinned, non_blocking=True)
            self._work(rows, longest)()
        except Exception as error:
            self.weights.fault = _line(error)
            log(f"decoding: without CUDA graphs from now on ({self.weights.fault})")
            self.recorded.clear()
            return None
        return self.logits_RV[:count].clone()  # the next step writes there

    def _inputs(self, rows: int) -> Tensor:
        return self.inputs[: 5 * rows].view(5, rows)

    def _work(self, rows: int, longest: int) -> Work:
        """What does a step. The first time as it is: a graph pays when a size comes back."""
        size = rows, longest
        if (replay := self.recorded.get(size)) is not None:
            return replay
        work = partial(decode, self.weights, self.cells, self._inputs(rows), longest, self.logits_RV[:rows])
        if size not in self.recorded:
            self.recorded[size] = None
            return work
        replay = self.recorded[size] = self.record(work)
        return replay


class Recorder:
    """Records work as CUDA graphs that share one pool of memory, which they may since only one runs at a time."""

    lock = threading.Lock()  # a process records one graph at a time

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool, self.stream = device, torch.cuda.graph_pool_handle(), _stream(device)

    def __call__(self, work: Work) -> Work:
        """Do work on static buffers once, record it, and return what replays it."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        # A recording that fails may leave its stream as the current one: the outer `stream` restores it.
        with self.lock, torch.cuda.device(self.device), torch.cuda.stream(current):
            self.stream.wait_stream(current)
            with torch.cuda.stream(self.stream):
                work()  # before the recording libraries load, and kernels are chosen
            current.wait_stream(self.stream)
            # thread_local: what other threads do on the GPU meanwhile does not concern the recording.
            recording = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
            with _undisturbed(), recording:
                work()
        return graph.replay


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """While a graph is recorded, none that nobody needs any more is destroyed, which would break the recording off.

    And cuBLAS takes its workspace from the pool of the graph, and leaves it there. PyTorch would keep one for each
    stream, record its address, and free it with the first graph of that stream that is destroyed, whatever others are
    there (github.com/pytorch/pytorch/issues/193402; torch._inductor's cudagraph_trees does as we do).
    """
    collects = gc.isenabled()
    gc.disable()
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()
        if collects:
            gc.enable()


@lru_cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The stream that recordings of a device are made on."""
    return torch.cuda.Stream(device)


def _up_to(sizes: Iterable[int], most: int) -> list[int]:
    return [*(size for size in sizes if size < most), most]


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""The model: a Llama, small enough to read in one sitting.

Pre-norm blocks (RMSNorm), grouped-query attention with rotary positions, SwiGLU, no biases, no dropout. Parameters
carry the names of Hugging Face's LlamaForCausalLM, so a checkpoint of ours is a Llama as it is.

Legend of the shape suffixes: B sequences, T new tokens of each, S cached and new tokens, N = B·T, D hidden width,
H query heads, K key/value heads, C = D / H head size, F width of the SwiGLU, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xmodel.model.attention import cascade_attention, causal_attention, masked_attention
from xmodel.model.cache import KVCache, Layout
from xmodel.model.cells import Cells, Rows, rows_attention
from xmodel.model.documents import DocumentMask, document_attention, document_mask
from xmodel.model.fp8 import fp8_linear
from xmodel.model.loss import linear_cross_entropy
from xmodel.model.recompute import run_block
from xmodel.model.width import initial_std
from xmodel.recipe.settings import Model


class Compute(NamedTuple):
    """How the blocks compute."""

    dtype: torch.dtype  # of activations and matrix products
    attention: str = "auto"  # kernel, as `choose_attention` names it
    fp8: bool = False  # the blocks' matrix products in float8


class Weight(nn.Module):
    """Holds one parameter called `weight`. NaN until it is initialised or loaded: forgetting that shows at once."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, torch.nan))


def rms_norm(x_BTD: Tensor, weight_D: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """x / rms(x) · weight (arXiv 1910.07467), computed in float32, returned in `dtype`."""
    x_BTD = x_BTD.float()
    scale_BT1 = torch.rsqrt(x_BTD.square().mean(-1, keepdim=True) + eps)
    return (x_BTD * scale_BT1 * weight_D.float()).to(dtype)


def rotary_tables(positions: int, head_size: int, base: float) -> Tensor:
    """Cosines and sines of the rotary angles (arXiv 2104.09864), [2, positions, C / 2], float32, made on the CPU."""
    frequencies = 1.0 / base ** (torch.arange(0, head_size, 2, dtype=torch.float32, device="cpu") / head_size)
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device="cpu"), frequencies)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x_BTHC: Tensor, rotary_2TC: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + C/2]) by its position's angle: the half-split form that Llama checkpoints use.

    The angles are [2, T, C / 2], or [2, B, T, C / 2] where rows have positions of their own.
    """
    cos_T1C, sin_T1C = rotary_2TC.unsqueeze(-2).unbind()
    left, right = x_BTHC.float().chunk(2, dim=-1)
    return torch.cat((left * cos_T1C - right * sin_T1C, right * cos_T1C + left * sin_T1C), dim=-1).to(x_BTHC.dtype)


def linear(x: Tensor, weight_OD: Any) -> Tensor:
    """x · wᵀ in the dtype of x. Weights that `inference.fast` keeps as integers have a product of their own."""
    return F.linear(x, weight_OD.to(x.dtype)) if isinstance(weight_OD, Tensor) else weight_OD.product(x)


def project(x_BTD: Tensor, first_OD: Tensor, *others: Tensor, fp8: bool = False) -> Tensor:
    """x · wᵀ for every weight [O, D], side by side on the last axis, in the dtype of x.

    In training one product takes the place of several: the weights are joined on the way, so that the parameters stay
    apart, as Llama has them. Without gradients they are used where they lie: for few tokens a copy would cost more.
    """
    if others and not torch.is_grad_enabled():
        return torch.cat([linear(x_BTD, weight) for weight in (first_OD, *others)], dim=-1)
    weight_OD = torch.cat((first_OD, *others)) if others else first_OD
    if fp8:
        return fp8_linear(x_BTD.flatten(0, 1), weight_OD).unflatten(0, x_BTD.shape[:2])
    return linear(x_BTD, weight_OD)


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245); with `qk_norm` as in Qwen3 (arXiv 2505.09388)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_size = config.heads, config.kv_heads, config.hidden // config.heads
        self.q_proj = Weight(config.hidden, config.hidden)
        self.k_proj = Weight(self.kv_heads * self.head_size, config.hidden)
        self.v_proj = Weight(self.kv_heads * self.head_size, config.hidden)
        self.o_proj = Weight(config.hidden, config.hidden)
        self.eps = config.norm_eps
        if config.qk_norm:
            self.q_norm, self.k_norm = Weight(self.head_size), Weight(self.head_size)
        self.qk_norm = config.qk_norm

    def forward(
        self,
        x_BTD: Tensor,
        rotary_2TC: Tensor,
        compute: Compute,
        layer: int,
        cache: KVCache | Rows | None,
        documents: DocumentMask | None,
        layout: Layout | None,
    ) -> Tensor:
        weights = self.q_proj.weight, self.k_proj.weight, self.v_proj.weight
        qkv_BTO = project(x_BTD, *weights, fp8=compute.fp8)
        qkv_BTHC = qkv_BTO.unflatten(-1, (-1, self.head_size))
        qk_BTHC, v_BTKC = qkv_BTHC.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.qk_norm:
            q_BTHC, k_BTKC = qk_BTHC.split((self.heads, self.kv_heads), dim=2)
            q_BTHC = rms_norm(q_BTHC, self.q_norm.weight, self.eps, x_BTD.dtype)
            qk_BTHC = torch.cat((q_BTHC, rms_norm(k_BTKC, self.k_norm.weight, self.eps, x_BTD.dtype)), dim=2)
        q_BTHC, k_BTKC = rotate(qk_BTHC, rotary_2TC).split((self.heads, self.kv_heads), dim=2)
        q_BHTC, k_BKSC, v_BKSC = (heads.transpose(1, 2) for heads in (q_BTHC, k_BTKC, v_BTKC))
        rows = cache if isinstance(cache, Rows) and not cache.layout.shared else None
        if cache is not None and rows is None:
            k_BKSC, v_BKSC = cache.append(layer, k_BKSC, v_BKSC, layout)
        if rows is not None:
            out_BHTC = rows_attention(q_BHTC, k_BKSC, v_BKSC, layer, rows)
        elif layout is not None and (layout.spans or layout.shared):
            out_BHTC = cascade_attention(q_BHTC, k_BKSC, v_BKSC, layer, layout)
        elif layout is not None:
            assert layout.seen_B1TS is not None
            out_BHTC = masked_attention(q_BHTC, k_BKSC, v_BKSC, layout.seen_B1TS)
        elif documents is None:
            out_BHTC = causal_attention(q_BHTC, k_BKSC, v_BKSC, kernel=compute.attention)
        else:
            out_BHTC = document_attention(q_BHTC, k_BKSC, v_BKSC, documents)
        return project(out_BHTC.transpose(1, 2).flatten(2), self.o_proj.weight, fp8=compute.fp8)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.gate_proj = Weight(config.ffn, config.hidden)
        self.up_proj = Weight(config.ffn, config.hidden)
        self.down_proj = Weight(config.hidden, config.ffn)

    def forward(self, x_BTD: Tensor, fp8: bool) -> Tensor:
        gate_BTF, up_BTF = project(x_BTD, self.gate_proj.weight, self.up_proj.weight, fp8=fp8).chunk(2, dim=-1)
        return project(F.silu(gate_BTF) * up_BTF, self.down_proj.weight, fp8=fp8)


class Block(nn.Module):
    """Attention and SwiGLU, each behind a norm and added to the residual stream."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config)
        self.input_layernorm = Weight(config.hidden)
        self.post_attention_layernorm = Weight(config.hidden)

    def forward(
        self,
        x_BTD: Tensor,
        rotary_2TC: Tensor,
        compute: Compute,
        layer: int = 0,
        cache: KVCache | Rows | None = None,
        documents: DocumentMask | None = None,
        layout: Layout | None = None,
    ) -> Tensor:
        normed_BTD = rms_norm(x_BTD, self.input_layernorm.weight, self.eps, compute.dtype)
        x_BTD = x_BTD + self.self_attn(normed_BTD, rotary_2TC, compute, layer, cache, documents, layout)
        normed_BTD = rms_norm(x_BTD, self.post_attention_layernorm.weight, self.eps, compute.dtype)
        return x_BTD + self.mlp(normed_BTD, compute.fp8)


class Decoder(nn.Module):
    """Everything below the output head; a module of its own only so that parameter names begin with `model.`."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.embed_tokens = Weight(config.vocab_size, config.hidden)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = Weight(config.hidden)


class Transformer(nn.Module):
    """A Llama language model.

    Attributes:
        config: its shape, resolved (no zeros).
        compute_dtype: dtype of activations and matrix products. Parameters are cast to it where they are used, so
            float32 parameters stay exact master weights while bfloat16 does the work; gradients have the parameters'
            dtype. Norms, rotary positions and the loss are computed in float32 whatever it is.
        attention, fp8, checkpointing: of training steps only (evaluation and generation use none of them): the kernel
            that `choose_attention` named; whether the blocks' products are in float8; what the blocks keep for the
            backward pass, see `run_block`.
    """

    def __init__(self, config: Model) -> None:
        """Weights are NaN until `init_weights` or `load_state_dict`."""
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.z_loss = 0.0
        self.attention, self.fp8, self.checkpointing = "auto", False, "none"
        self.decoder: Any = None  # set by inference.fast.prepare
        self.joined: Any = None  # set by inference.graphs
        self.compiled_block: Callable[..., Tensor] | None = None  # set by compile_model
        self.model = Decoder(config)
        if not config.tied_embeddings:
            self.lm_head = Weight(config.vocab_size, config.hidden)
        positions = max(config.context_length, config.position_table)
        tables = rotary_tables(positions, config.hidden // config.heads, config.rope_base)
        self.register_buffer("rotary", tables, persistent=False)
        self.rotary: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transformer:
        """What `to`, `cuda`, `bfloat16` ... do. The angles stay float32: bfloat16 does not tell far positions apart."""
        angles = self.rotary
        super()._apply(fn, recurse)
        if self.rotary.dtype != angles.dtype:
            self.rotary = angles.to(self.rotary.device)
        return self

    @property
    def head_weight(self) -> Tensor:
        """The output head, [V, D]; the input embedding when they are tied."""
        return self.model.embed_tokens.weight if self.config.tied_embeddings else self.lm_head.weight

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Matrices from N(0, `initial_std`), norms 1. Drawn on the CPU in parameter order: the same on every device."""
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                values = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                parameter.copy_(values.normal_(0.0, initial_std(name, self.config), generator=generator))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.rotary.device

    @property
    def cascades(self) -> bool:
        """Whether a layout may have `spans` and `shared`: on a CPU."""
        return self.device.type == "cpu"

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for `rows` texts of at most `capacity` tokens."""
        return KVCache(self.config, rows, capacity, self.compute_dtype, self.device)

    def new_cells(self, cells: int) -> Cells:
        """An empty cache for texts of different length, of `cells` tokens together."""
        return Cells(self.config, cells, self.compute_dtype, self.device)

    def hidden(
        self,
        tokens_BT: Tensor,
        cache: KVCache | Rows | None = None,
        layout: Layout | None = None,
        starts_BT: Tensor | None = None,
        wanted_W: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states, normed and ready for the head: [B, T, D], or [W, D], in `compute_dtype`.

        Args:
            tokens_BT: int64 token ids. With a cache they follow the `cache.length` tokens already in it.
            cache: is appended to; its capacity and the position table must hold all tokens.
            layout: where the tokens stand, when that is not one behind the other in every row.
            starts_BT: first position of each token's document (documents.py); attention then stays within documents.
                Without a cache only.
            wanted_W: int64, rising: which of the B · T tokens' states are asked for. None: all. Of the others the last
                layer needs no more than keys and values.
        """
        assert starts_BT is None or (cache is None and layout is None)
        past, new = cache.length if cache is not None else 0, tokens_BT.shape[1]
        if layout is None:
            limit = min(self.rotary.shape[1], cache.capacity) if isinstance(cache, KVCache) else self.rotary.shape[1]
            if past + new > limit:
                raise ValueError(
                    f"{past} + {new} tokens are more than the {limit} that the position table or the cache holds"
                )
        if self.decoder is not None and (states := self.decoder.hidden(tokens_BT, cache, layout, wanted_W)) is not None:
            return states
        rotary_2TC = self.rotary[:, past : past + new] if layout is None else self.rotary[:, layout.positions_BT]
        x_BTD = F.embedding(tokens_BT, self.model.embed_tokens.weight)
        training = self.training and torch.is_grad_enabled() and cache is None and layout is None
        documents = None
        if starts_BT is not None:
            compiled = training and self.compiled_block is not None
            documents = document_mask(starts_BT, self.compute_dtype, compiled)
        if training:
            run, compute = self.compiled_block or run_block, Compute(self.compute_dtype, self.attention, self.fp8)
            for block in self.model.layers:
                x_BTD = run(self.checkpointing, block, x_BTD, rotary_2TC, compute, 0, None, documents)
        else:
            for layer, block in enumerate(self.model.layers):
                x_BTD = block(x_BTD, rotary_2TC, Compute(self.compute_dtype), layer, cache, documents, layout)
        if cache is not None:
            cache.advance(new, layout)
        if wanted_W is not None:
            x_BTD = x_BTD.flatten(0, 1)[wanted_W]
        return rms_norm(x_BTD, self.model.norm.weight, self.config.norm_eps, self.compute_dtype)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: [..., D] -> [..., V] in `compute_dtype`."""
        if self.decoder is not None and (logits := self.decoder.head(hidden)) is not None:
            return logits
        return linear(hidden, self.head_weight)

    def forward(
        self,
        tokens_BT: Tensor,
        cache: KVCache | None = None,
        last_only: bool = False,
        targets_BT: Tensor | None = None,
        starts_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, T, V] in `compute_dtype` ([B, 1, V] with `last_only`); with targets the loss, see `loss`."""
        hidden_BTD = self.hidden(tokens_BT, cache, starts_BT=starts_BT)
        if targets_BT is not None:
            hidden_ND, targets_N = hidden_BTD.flatten(0, 1), targets_BT.flatten()
            return linear_cross_entropy(hidden_ND, self.head_weight, targets_N, self.z_loss)
        return self.head(hidden_BTD[:, -1:] if last_only else hidden_BTD)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, starts_BT: Tensor | None = None) -> Tensor:
        """Summed cross-entropy in nats, a float32 scalar; targets of -100 carry no loss. Never holds all logits.

        Goes through `forward`, so that a wrapper which overrides it (DistributedDataParallel) can do the same:
        `ddp(tokens_BT, targets_BT=targets_BT)`.
        """
        return self(tokens_BT, targets_BT=targets_BT, starts_BT=starts_BT)


def compile_model(model: Transformer) -> None:
    """Compile the training step's blocks, in place; the first step then takes some seconds longer.

    One block is compiled and serves every layer: a sixth of the time that a whole 6-layer model takes, with nearly its
    gain, since embedding, head and loss are few large kernels already. Only training uses it (`model.train()` with
    gradients on), where the shape of a batch never changes: evaluation and generation, whose shapes do, never compile.
    """
    model.compiled_block = torch.compile(run_block, dynamic=False)

"""A causal model of Hugging Face transformers behind the face of our `Transformer`, and its tokenizer behind ours.

Legend of the shape suffixes: B rows of a batch, T new tokens of a row, S cached and new tokens, D hidden width,
K key/value heads, C head size, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xmodel.errors import UserError
from xmodel.model.cache import KVCache, Layout
from xmodel.recipe.settings import Model
from xmodel.tokenizer.others import OtherTokenizer, bytes_of_pieces

try:
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
    from transformers.cache_utils import Cache, DynamicLayer
except ImportError:
    raise UserError("a model of another family than Llama needs `pip install xmodel[hf]`") from None

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}  # nor is a person asked to trust it
TOLERANCE = 1e-4  # of logits when the ways to compute them are compared, in float32


class HfModel(torch.nn.Module):
    """A transformers model with the methods that scoring and generation use of a `Transformer`.

    Attributes:
        config: the shape of its key/value cache, its context length and vocabulary, in our terms.
        compute_dtype: of its parameters.
        branches: whether a row may hold several texts and tokens may stand in any order of columns (`Layout`). False
            for models that ignore positions or masks from outside (recurrent ones, ALiBi, sliding windows): these are
            run on whole texts only, right, but without shared prefixes or a cache.
    """

    def __init__(self, model: Any, context_length: int) -> None:
        """Compares the ways to compute logits on a few tokens, and takes the fastest that gives the model's own.

        Args:
            model: a transformers model with an output head, on its device.
        """
        super().__init__()
        self.model = model.eval()
        self.compute_dtype: torch.dtype = next(model.parameters()).dtype
        text = model.config.get_text_config()
        self.config = Model(
            layers=1, heads=1, kv_heads=1, hidden=1, ffn=1, context_length=context_length, vocab_size=text.vocab_size
        )
        self._scale: Callable[[Tensor], Tensor] | None = _scaling(text)
        self.branches = False
        with torch.no_grad():
            self._choose(text)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.model.parameters()).device

    def hidden(self, tokens_BT: Tensor, cache: Any = None, layout: Layout | None = None) -> Tensor:
        """Final hidden states, as `Transformer.hidden`: [B, T, D]."""
        if isinstance(cache, TextCache):
            return self._whole_texts(tokens_BT, cache, layout)
        if cache is None and layout is None:
            return self._states(input_ids=tokens_BT, use_cache=False)
        past = cache.length if cache is not None else 0
        layout = layout or _behind(past, tokens_BT)
        bias_B1TS = torch.zeros(layout.seen_B1TS.shape, dtype=self.compute_dtype, device=self.device)
        bias_B1TS.masked_fill_(~layout.seen_B1TS, torch.finfo(self.compute_dtype).min)
        arguments = {"input_ids": tokens_BT, "position_ids": layout.positions_BT, "attention_mask": bias_B1TS}
        if cache is None:
            return self._states(**arguments, use_cache=False)
        hidden_BTD = self._states(**arguments, past_key_values=CacheFace(cache, layout), use_cache=True)
        cache.advance(tokens_BT.shape[1], layout)
        return hidden_BTD

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: [..., D] -> [..., V]."""
        if self._scale is None:
            return hidden  # they are logits already
        return self._scale(self.model.get_output_embeddings()(hidden))

    def new_cache(self, rows: int, capacity: int) -> Any:
        """An empty cache for `rows` texts of at most `capacity` tokens."""
        if not self.branches:
            return TextCache(rows, capacity, self.device)
        return KVCache(self.config, rows, capacity, self.compute_dtype, self.device)

    def _states(self, **arguments: Any) -> Tensor:
        if self._scale is None:
            return self.model(**arguments).logits
        return self.model.base_model(**arguments).last_hidden_state

    def _choose(self, text: Any) -> None:
        """Settle how logits come about, and what a row may hold, by comparison with the model's own forward pass."""
        tokens_BT = torch.arange(3, 15, device=self.device)[None] % self.config.vocab_size
        cache = DynamicCache()
        own_BTV = self.model(input_ids=tokens_BT, past_key_values=cache, use_cache=True).logits.float()

        def right(found_BTV: Tensor) -> bool:
            loose = 1.0 if self.compute_dtype == torch.float32 else 300.0  # bfloat16 has 8 bits
            scale = float(own_BTV.abs().max()) + 1.0
            return bool(((found_BTV.float() - own_BTV).abs().max() <= loose * TOLERANCE * scale).item())

        try:
            fits = right(self.head(self.hidden(tokens_BT)))
        except (AttributeError, TypeError, RuntimeError):
            fits = False
        if not fits:
            self._scale = None
        layers: list[Any] = cache.layers
        plain = [type(layer) is DynamicLayer and layer.keys is not None for layer in layers]
        kept: list[Any] = [
            states for layer in layers if type(layer) is DynamicLayer for states in (layer.keys, layer.values)
        ]
        shapes = {tuple(states.shape) for states in kept}
        if not all(plain) or len(shapes) != 1 or _slides(text, self.config.context_length):
            return
        _, kv_heads, _, size = next(iter(shapes))
        self.config = Model(
            layers=len(layers),
            heads=kv_heads,
            kv_heads=kv_heads,
            hidden=kv_heads * size,
            ffn=getattr(text, "intermediate_size", None) or 4 * kv_heads * size,
            context_length=self.config.context_length,
            vocab_size=self.config.vocab_size,
        )
        self.branches = True
        try:
            self.branches = right(self._out_of_order(tokens_BT))
        except (AttributeError, TypeError, RuntimeError, ValueError, IndexError):
            self.branches = False

    def _out_of_order(self, tokens_BT: Tensor) -> Tensor:
        """Logits of a text whose first tokens are cached and whose others come in reverse: as `Layout` allows."""
        past, new = 5, tokens_BT.shape[1] - 5
        cache = self.new_cache(1, past + new)
        first_BTD = self.hidden(tokens_BT[:, :past], cache)
        order_T = torch.arange(new - 1, -1, -1, device=self.device)
        positions_BT = (past + order_T)[None]
        seen_TS = torch.cat([torch.ones(new, past, device=self.device).bool(), order_T <= order_T[:, None]], dim=1)
        layout = Layout(positions_BT, seen_TS[None, None])
        rest_BTD = self.hidden(tokens_BT[:, past:][:, order_T], cache, layout)
        return self.head(torch.cat([first_BTD, rest_BTD[:, order_T]], dim=1))

    def _whole_texts(self, tokens_BT: Tensor, cache: TextCache, layout: Layout | None) -> Tensor:
        """What a cache would give, by running the whole texts again."""
        layout = layout or _behind(cache.length, tokens_BT)
        cache.tokens_BS.scatter_(1, layout.positions_BT, tokens_BT)
        end = int(layout.positions_BT.max()) + 1
        hidden_BSD = self._states(input_ids=cache.tokens_BS[:, :end], use_cache=False)
        cache.advance(tokens_BT.shape[1], layout)
        index_BTD = layout.positions_BT[..., None].expand(-1, -1, hidden_BSD.shape[-1])
        return hidden_BSD.gather(1, index_BTD)


class TextCache:
    """In the place of a KVCache for models that only run whole texts: it keeps the tokens themselves."""

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        self.tokens_BS = torch.zeros(rows, capacity, dtype=torch.int64, device=device)
        self.capacity, self.length = capacity, 0
        self.device = self.tokens_BS.device

    def first_rows(self, rows: int) -> TextCache:
        """As `KVCache.first_rows`."""
        view = copy.copy(self)
        view.tokens_BS = self.tokens_BS[:rows]
        return view

    def advance(self, new: int, layout: Layout) -> None:
        """Count the new tokens, as `KVCache.advance`."""
        if layout.columns_BT is None:
            self.length += new

    def copy_rows(self, rows_N: Tensor, other: TextCache, others_N: Tensor, length: int) -> None:
        """As `KVCache.copy_rows`."""
        self.tokens_BS[rows_N, :length] = other.tokens_BS[others_N, :length]


class CacheFace(Cache):
    """Our KVCache as the cache that transformers' attention layers expect."""

    def __init__(self, cache: KVCache, layout: Layout) -> None:
        super().__init__(layers=[])
        self.cache, self.layout = cache, layout

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Store a layer's new keys and values; return all of them."""
        return self.cache.append(layer_idx, key_states, value_states, self.layout)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in use before this call."""
        return self.cache.length

    @property
    def is_sliding(self) -> list[bool]:
        """Of each layer: none does."""
        return [False] * self.cache.keys_LBKSC.shape[0]


def _behind(past: int, tokens_BT: Tensor) -> Layout:
    """Tokens that follow `past` others in every row."""
    (rows, new), device = tokens_BT.shape, tokens_BT.device
    positions_BT = torch.arange(past, past + new, device=device).expand(rows, -1)
    seen_TS = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)
    return Layout(positions_BT, seen_TS.expand(rows, 1, -1, -1))


def _scaling(text: Any) -> Callable[[Tensor], Tensor]:
    """What a family does to its logits behind the head, by the names that transformers' configurations have for it."""
    cap, times, over = (
        getattr(text, name, None) for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
    )

    def scale(logits: Tensor) -> Tensor:
        if times:  # Cohere
            logits = logits * times
        if over:  # Granite
            logits = logits / over
        return torch.tanh(logits / cap) * cap if cap else logits  # Gemma 2

    return scale


def _slides(text: Any, context_length: int) -> bool:
    """Whether layers look back less than the context: a mask from outside would let them see further."""
    window = getattr(text, "sliding_window", None)
    local = any("full" not in kind for kind in getattr(text, "layer_types", None) or ())
    return local or bool(window and window < context_length and getattr(text, "use_sliding_window", True))


def load_hf_model(folder: Path, dtype: torch.dtype, device: torch.device) -> HfModel:
    """Open any causal model of transformers.

    Raises:
        UserError: transformers cannot open it as a causal model.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **LOCAL)
    except MemoryError:
        raise
    except Exception as error:  # what a config.json can make of other people's code is not to be foreseen
        reason = _in_a_line(error)
        raise UserError(f"{folder}: transformers {transformers.__version__} cannot open it ({reason})") from None
    model.to(device)  # pyright: ignore[reportArgumentType] - an overload that transformers wraps
    return HfModel(model, _context_length(model.config.get_text_config(), folder))


def _context_length(text: Any, folder: Path) -> int:
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"):
        if isinstance(length := getattr(text, name, None), int) and length > 0:
            return length
    length = getattr(AutoTokenizer.from_pretrained(folder, **LOCAL), "model_max_length", 0)
    return length if 0 < length < 10**7 else 2048  # as lm-evaluation-harness: where nothing says, 2048


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


class HfTokenizer(OtherTokenizer):
    """A tokenizer of transformers behind the interface of ours."""

    def __init__(self, folder: Path) -> None:
        """Open the tokenizer of a model folder.

        Raises:
            UserError: transformers finds none there.
        """
        try:
            self.backend: Any = AutoTokenizer.from_pretrained(folder, **LOCAL)
        except Exception as error:  # as above
            reason = _in_a_line(error)
            raise UserError(f"{folder}: no tokenizer that transformers can open ({reason})") from None
        self.path, self.name = folder, folder.name
        vocabulary = self.backend.get_vocab()
        self.texts = {number: text for text, number in vocabulary.items()}
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.unk_id, self.bos_id, self.eos_id = (
            getattr(self.backend, name) for name in ("unk_token_id", "bos_token_id", "eos_token_id")
        )
        with_bos = self.backend.encode("a")
        self.adds_bos = self.bos_id is not None and with_bos[:1] == [self.bos_id]
        self.special = set(self.backend.all_special_ids)

    @cached_property
    def pieces(self) -> list[bytes]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Bytes that each id stands for; b"" for control tokens."""
        if (fast := getattr(self.backend, "backend_tokenizer", None)) is not None:
            control = {self.texts[number] for number in self.special}
            return bytes_of_pieces(json.loads(fast.to_str()), self.backend.get_vocab(), control)
        return [b"" if i in self.special else self._decode([i]).encode() for i in range(self.vocab_size)]

    def _encode(self, texts: list[str], threads: int) -> list[list[int]]:
        return self.backend(texts, add_special_tokens=False)["input_ids"] if texts else []

    def _decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=True)

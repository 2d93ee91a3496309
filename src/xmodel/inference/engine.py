"""Text out of a model: one prompt, greedily or sampled, over a key/value cache. (Many prompts: many.py.)

Legend of the shape suffixes: B rows of a batch, T tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from xmodel.errors import UserError
from xmodel.model.transformer import KVCache, Transformer
from xmodel.tokenizer.codec import Tokenizer

EOS = 2


def generate(
    model: Transformer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_ids: Collection[int] = (EOS,),
) -> Iterator[int]:
    """Token ids that continue the prompt, until a stop id (not yielded), `max_new_tokens` or a full context.

    Args:
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
        top_k: draw from the k likeliest tokens; 0: from all.
        top_p: draw from the fewest likeliest tokens whose probabilities reach p (arXiv 1904.09751); 1: from all.
        seed: of this call's own random generator: the same seed gives the same text.

    Raises:
        UserError: at the call: a setting out of range, or a prompt that is empty or leaves no room in the context.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p)
    limit = model.config.context_length
    if not len(prompt_ids):
        raise UserError("the prompt is empty: a model continues at least one token, such as <s>")
    if len(prompt_ids) >= limit:
        raise UserError(
            f"the prompt has {len(prompt_ids)} tokens; the model's context holds {limit}, the answer included"
        )
    sampling = (temperature, top_k, top_p, torch.Generator("cpu").manual_seed(seed))
    room = min(max_new_tokens, limit - len(prompt_ids))
    return _generate(model, torch.tensor([list(prompt_ids)]), room, frozenset(stop_ids), sampling)


def _generate(
    model: Transformer,
    tokens_BT: Tensor,
    room: int,
    stop_ids: frozenset[int],
    sampling: tuple[float, int, float, torch.Generator],
) -> Iterator[int]:
    device = model.rotary.device
    cache = KVCache(model.config, 1, tokens_BT.shape[1] + room, model.compute_dtype, device)
    for _ in range(room):
        with torch.no_grad():  # not around the yield: the caller's own gradients are not our business
            logits_V = model(tokens_BT.to(device), cache, last_only=True)[0, -1]
        token = sample(logits_V, *sampling)
        if token in stop_ids:
            return
        yield token
        tokens_BT = torch.tensor([[token]])


def check_sampling(max_new_tokens: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raise a UserError for a setting that is out of range."""
    for name, value, good, range_ in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, 0 <= temperature < float("inf"), "0 (greedy) or more"),
        ("top_k", top_k, top_k >= 0, "0 (all tokens) or more"),
        ("top_p", top_p, 0 < top_p <= 1, "above 0 and at most 1 (all tokens)"),
    ):
        if not good:
            raise UserError(f"{name} is {value}; it has to be {range_}")


def sample(logits_V: Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """Draw one token id. The draw is made on the CPU in float32, so a seed means the same whatever the device."""
    if temperature == 0:
        return int(logits_V.argmax())
    scaled_V = logits_V.float().cpu() / temperature
    if top_k:
        weakest = scaled_V.topk(min(top_k, len(scaled_V))).values[-1]
        scaled_V = scaled_V.masked_fill(scaled_V < weakest, -torch.inf)
    probabilities, ids = scaled_V.softmax(0).sort(descending=True, stable=True)
    if top_p < 1:
        before = probabilities.cumsum(0) - probabilities  # mass of the likelier tokens: the first one always stays
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])


def encode_prompt(tokenizer: Tokenizer, prompt: str, bos: bool) -> list[int]:
    """Token ids of a prompt, behind what stood before every text in training: <s>, or the </s> of the one before."""
    return [tokenizer.bos_id if bos else tokenizer.eos_id, *tokenizer.encode(prompt)]


def generate_text(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    bos: bool,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """The text that continues `prompt`, piece by piece; a character is never broken. Settings as for `generate`.

    Args:
        bos: whether documents began with <s> in training (`tokens.bos` of the recipe).
    """
    ids = generate(
        model,
        encode_prompt(tokenizer, prompt, bos),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_ids=(tokenizer.eos_id,),
    )
    return _decode(tokenizer, ids)


def _decode(tokenizer: Tokenizer, ids: Iterator[int]) -> Iterator[str]:
    stream = tokenizer.stream()
    for token in ids:
        if text := stream.push(token):
            yield text
    if text := stream.finish():
        yield text

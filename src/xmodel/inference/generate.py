"""Text out of a model for one prompt, token by token. (Many prompts: many.py; requests that come and go: engine.py.)"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from xmodel.errors import UserError
from xmodel.inference.batch import Batch, Row
from xmodel.inference.sampling import Sampler, Sampling
from xmodel.inference.text import AnswerText, encode_prompt

EOS = 2


def generate(
    model: Any,
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
        model: a `Transformer`, or an `HfModel`.
        temperature, top_k, top_p, seed: see `Sampling`.

    Raises:
        UserError: at the call: a setting out of range, or a prompt that is empty or leaves no room in the context.
    """
    settings = Sampling(max_new_tokens, temperature, top_k, top_p, seed=seed)
    settings.check()
    limit = model.config.context_length
    if not len(prompt_ids):
        raise UserError("the prompt is empty: a model continues at least one token, such as <s>")
    if len(prompt_ids) >= limit:
        raise UserError(
            f"the prompt has {len(prompt_ids)} tokens; the model's context holds {limit}, the answer included"
        )
    row = Row(prompt_ids, min(max_new_tokens, limit - len(prompt_ids)))
    return _generate(model, row, Sampler(settings), frozenset(stop_ids))


def _generate(model: Any, row: Row, sampler: Sampler, stop_ids: frozenset[int]) -> Iterator[int]:
    batch: Batch[Row] = Batch(model, 1, len(row.prompt) + row.room)
    while not (done := batch.prefill([row])):
        pass
    ((_, logits_V),) = done
    for left in range(row.room, 0, -1):
        row.last = sampler.choose(logits_V.float().cpu()).token
        if row.last in stop_ids:
            return
        yield row.last
        if left > 1:
            logits_V = batch.step()[0]


def generate_text(
    model: Any,
    tokenizer: Any,
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
    return _decode(AnswerText(tokenizer.pieces), ids)


def _decode(text: AnswerText, ids: Iterator[int]) -> Iterator[str]:
    for token in ids:
        text.push(token)
        if new := text.take()[0]:
            yield new
    text.finish()
    if new := text.take(last=True)[0]:
        yield new

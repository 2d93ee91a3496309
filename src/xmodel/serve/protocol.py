"""Requests of the OpenAI API: every field is used, harmless, or refused by its name. Nothing is ignored in silence.

Fields and defaults are those of OpenAI's API reference (completions, chat completions); `top_k`, `min_p` and
`repetition_penalty` are the names that vLLM gave its additions.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from xmodel.errors import UserError
from xmodel.inference.sampling import MOST_LOGPROBS, Sampling, SettingError
from xmodel.inference.subjects import Subject
from xmodel.inference.templates import chat_prompt, chat_stops
from xmodel.inference.text import encode_prompt
from xmodel.serve.errors import ApiError

MOST_STOPS = 16
MOST_ANSWERS = 128
COMPLETION_TOKENS = 16  # of an answer whose request names no length: OpenAI's default; a chat's goes on to its end
# Bookkeeping and hints of speed: they change nothing in an answer.
HARMLESS = {
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "parallel_tool_calls",
}
# Not offered; with one of the values named here the answer is the same without it.
REFUSED: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "suffix": ("",),
    "ignore_eos": (False,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "stop_token_ids": ([],),
    "skip_special_tokens": (True,),
    "guided_json": (),
    "structured_outputs": (),
}


class Ask(NamedTuple):
    """A request that has been understood.

    Attributes:
        prompts: token ids of each.
        texts: what each prompt says; only where it is echoed.
        settings: of the first answer; the others differ in the seed.
        n: answers to each prompt.
        stream, usage: whether it is streamed, and whether a stream ends with its usage.
    """

    chat: bool
    prompts: list[list[int]]
    texts: list[str] | None
    settings: Sampling
    n: int
    stream: bool
    usage: bool


def read_json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a request's body is.

    Raises:
        ApiError: 400, it is something else.
    """

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 (byte {error.start})", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body has to be a JSON object", code="invalid_json")
    return value


def understand(body: bytes, subject: Subject, names: tuple[str, ...], most_tokens: int, *, chat: bool) -> Ask:
    """Read the body of a request.

    Args:
        names: of the model; the first is the one that answers carry.
        most_tokens: that an answer may have.

    Raises:
        ApiError: 400 with the field's name; 404 for a model of another name.
    """
    given = read_json_object(body)
    fields = _checked(given, CHAT if chat else COMPLETION)
    name = fields.get("model")
    if name is not None and name not in names:
        raise ApiError(
            404, f"no model {name!r} here; this server has {names[0]!r}", param="model", code="model_not_found"
        )
    stream_options = fields.get("stream_options")
    if stream_options is not None and not fields.get("stream"):
        raise _wrong("stream_options", "goes with stream: true only")
    n = fields.get("n") or 1
    if fields.get("best_of") not in (None, n):
        raise _wrong("best_of", f"has to equal n, which is {n}, or be left out: no answers are made to be thrown away")
    length = "max_completion_tokens" if fields.get("max_completion_tokens") is not None else "max_tokens"
    limit = fields.get(length)
    if limit is not None and limit > most_tokens:
        raise _wrong(length, f"is {limit}; this server's answers have at most {most_tokens} tokens")
    if limit is None:
        limit = most_tokens if chat else min(COMPLETION_TOKENS, most_tokens)
    logprobs = _chat_logprobs(fields) if chat else fields.get("logprobs")
    if fields.get("echo") and logprobs is not None:
        raise _wrong("echo", "does not go with logprobs: probabilities are given for new tokens only")
    prompts, texts = (_chat_prompts if chat else _completion_prompts)(fields, subject)
    settings = Sampling(
        max_new_tokens=limit,
        stop=fields.get("stop", ()) + (tuple(chat_stops(subject)) if chat else ()),
        logprobs=logprobs,
        seed=fields.get("seed"),
        temperature=_or(fields.get("temperature"), 1.0),
        top_p=_or(fields.get("top_p"), 1.0),
        top_k=max(_or(fields.get("top_k"), 0), 0),  # vLLM's -1, too, is all
        min_p=_or(fields.get("min_p"), 0.0),
        repetition_penalty=_or(fields.get("repetition_penalty"), 1.0),
        frequency_penalty=_or(fields.get("frequency_penalty"), 0.0),
        presence_penalty=_or(fields.get("presence_penalty"), 0.0),
    )
    try:
        settings.check()
    except SettingError as error:
        raise ApiError(400, str(error), param=_field(error, length), code="invalid_value") from None
    usage = bool(stream_options and stream_options.get("include_usage"))
    return Ask(chat, prompts, texts, settings, n, bool(fields.get("stream")), usage)


def _or(value: float | None, default: float) -> Any:
    return default if value is None else value


def _field(error: SettingError, length: str) -> str:
    """The name that a request has for a setting."""
    return length if error.field == "max_new_tokens" else error.field


def _wrong(field: str, message: str) -> ApiError:
    return ApiError(400, f"{field} {message}", param=field, code="invalid_value")


def _checked(given: dict[str, Any], table: dict[str, Check]) -> dict[str, Any]:
    """The known fields of a request, null ones left out; every other is refused."""
    found = {}
    for field, value in given.items():
        if field in table:
            if value is not None:
                found[field] = table[field](field, value)
        elif field in REFUSED:
            if value is not None and value not in REFUSED[field]:
                raise ApiError(400, f"{field} is not supported here", param=field, code="unsupported_parameter")
        elif field not in HARMLESS:
            near = difflib.get_close_matches(field, table, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ApiError(400, f"unknown field {field!r}{hint}", param=field, code="unknown_parameter")
    return found


# Checks of one field: its value as it is used. Ranges of sampling settings are `Sampling.check`'s.

Check = Callable[[str, Any], Any]


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(field, "has to be a number")
    try:
        return float(value)
    except OverflowError:
        raise _wrong(field, "is too large") from None


def _integer(low: int, high: int) -> Check:
    def check(field: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(field, "has to be a whole number")
        if not low <= value <= high:
            raise _wrong(field, f"has to be from {low} to {high}")
        return value

    return check


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(field, "has to be true or false")
    return value


def _text(field: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(field, "has to be a string")
    return value


def _stop(field: str, value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise _wrong(field, "has to be a text or a list of texts that are not empty")
    if len(texts) > MOST_STOPS:
        raise _wrong(field, f"has {len(texts)} texts; at most {MOST_STOPS} are allowed")
    return tuple(texts)


def _stream_options(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(field, 'has to be an object, as in {"include_usage": true}')
    for name, flag in value.items():
        if name not in ("include_usage", "include_obfuscation") or not isinstance(flag, bool | None):
            raise _wrong(field, "may have include_usage: true or false")
    if value.get("include_obfuscation"):
        raise _wrong(field, "may not ask for obfuscation, which is not offered")
    return value


def _as_it_is(field: str, value: Any) -> Any:
    return value


SHARED: dict[str, Check] = {
    "model": _text,
    "max_tokens": _integer(1, 1 << 31),
    "temperature": _number,
    "top_p": _number,
    "top_k": _integer(-1, 1 << 31),
    "min_p": _number,
    "repetition_penalty": _number,
    "frequency_penalty": _number,
    "presence_penalty": _number,
    "seed": _integer(-(1 << 63), (1 << 63) - 1),
    "stop": _stop,
    "n": _integer(1, MOST_ANSWERS),
    "stream": _flag,
    "stream_options": _stream_options,
}
COMPLETION: dict[str, Check] = SHARED | {
    "prompt": _as_it_is,  # _completion_prompts looks into it
    "echo": _flag,
    "best_of": _integer(1, MOST_ANSWERS),
    "logprobs": _integer(0, MOST_LOGPROBS),
}
CHAT: dict[str, Check] = SHARED | {
    "messages": _as_it_is,  # _chat_prompts looks into it
    "max_completion_tokens": _integer(1, 1 << 31),
    "logprobs": _flag,
    "top_logprobs": _integer(0, MOST_LOGPROBS),
}


def _chat_logprobs(fields: dict[str, Any]) -> int | None:
    if fields.get("logprobs"):
        return fields.get("top_logprobs", 0)
    if fields.get("top_logprobs"):
        raise _wrong("top_logprobs", "goes with logprobs: true only")
    return None


def _completion_prompts(fields: dict[str, Any], subject: Subject) -> tuple[list[list[int]], list[str] | None]:
    """A text, texts, token ids or lists of token ids; a text stands behind what began every text in training."""
    prompt = fields.get("prompt")
    several = isinstance(prompt, list) and (not prompt or type(prompt[0]) is not int)
    parts = prompt if several else [prompt]
    vocabulary = subject.tokenizer.vocab_size
    if prompt is None or not isinstance(parts, list) or not parts:
        raise _wrong("prompt", "is missing: a text, a list of texts, token ids, or a list of lists of token ids")
    prompts = []
    for part in parts:
        if isinstance(part, str):
            prompts.append(_encoded(part, subject))
        elif isinstance(part, list) and set(map(type, part)) == {int}:  # JSON's true is a bool, and no id
            if not 0 <= min(part) <= max(part) < vocabulary:
                raise _wrong("prompt", f"has token ids outside of 0 to {vocabulary - 1}, which are the tokenizer's")
            prompts.append(part)
        else:
            raise _wrong("prompt", "has to be a text, a list of texts, token ids, or a list of lists of token ids")
    if not fields.get("echo"):
        return prompts, None
    return prompts, [part if isinstance(part, str) else subject.tokenizer.decode(part) for part in parts]


def _encoded(text: str, subject: Subject) -> list[int]:
    try:
        return encode_prompt(subject.tokenizer, text, subject.bos)
    except UserError as error:
        raise _wrong("prompt", f"cannot be encoded: {error}") from None


def _chat_prompts(fields: dict[str, Any], subject: Subject) -> tuple[list[list[int]], None]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", 'is missing: a list such as [{"role": "user", "content": "Hello"}]')
    plain = [_message(number, message) for number, message in enumerate(messages)]
    try:
        return [chat_prompt(subject, plain)], None
    except UserError as error:
        raise _wrong("messages", f"cannot be used: {error}") from None


def _message(number: int, message: Any) -> dict[str, str]:
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        raise ApiError(400, f'{where} has to be an object with "role" and "content"', param=where, code="invalid_value")
    role, content = message.get("role"), message.get("content")
    if role == "developer":  # OpenAI's newer word for system
        role = "system"
    if role not in ("system", "user", "assistant"):
        raise _wrong(f"{where}.role", "has to be system, user or assistant")
    for field, value in message.items():
        if field not in ("role", "content") and value not in (None, [], ""):
            raise _wrong(f"{where}.{field}", "is not supported here")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise _wrong(f"{where}.content", 'may have parts of {"type": "text", "text": ...} only')
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise _wrong(f"{where}.content", "has to be a text or a list of parts of text")
    return {"role": role, "content": content}

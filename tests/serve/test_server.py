"""The API over real sockets, by OpenAI's own client and by httpx: answers, refusals, and what a client may do wrong."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import slow_logprobs

from xmodel.inference.batch import Batch
from xmodel.inference.engine import Engine, Token
from xmodel.inference.sampling import Sampling
from xmodel.inference.subjects import Subject
from xmodel.inference.text import encode_prompt

for extra in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(extra, reason="the extra `serve` is not installed")
openai = pytest.importorskip("openai", reason="openai is not installed")

from live_server import CONTEXT, QUEUE, ROWS, Live, eventually, live_server  # noqa: E402

from xmodel.serve.answers import Place, Shape  # noqa: E402

SAMPLED = {"temperature": 0.9, "top_p": 0.95, "max_tokens": 24}
MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "小林去了哪里?"}]


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[Any]:
    with openai.OpenAI(base_url=live.address + "/v1", api_key="none", max_retries=0) as client:
        yield client


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """Those of a whole stream, without its [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, done = [line for line in response.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


# Answers


def test_the_model(client: Any, live: Live) -> None:
    (about,) = client.models.list().data
    assert (about.id, about.object, about.max_model_len) == ("tiny", "model", CONTEXT)
    assert client.models.retrieve("tiny") == about
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other/one")
    assert caught.value.code == "model_not_found"
    assert live.http.get("/health").json()["status"] == "ready"
    assert live.http.get("/health/live").status_code == 200
    assert "text/html" in live.http.get("/").headers["content-type"]


def test_a_completion_is_the_engines_answer(client: Any, live: Live, subject: Subject, prompt: str) -> None:
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=20, temperature=0)
    ids = encode_prompt(subject.tokenizer, prompt, subject.bos)
    expected = "".join(delta.text for delta in live.engine.stream(ids, Sampling(20)))
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, "length")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (len(ids), 20, len(ids) + 20)
    assert (answer.object, answer.model, answer.id[:5]) == ("text_completion", "tiny", "cmpl-")
    assert len(live.ask(prompt=prompt, temperature=0, logprobs=0).json()["choices"][0]["logprobs"]["tokens"]) == 16


def test_chat_is_the_plain_frame(client: Any, live: Live) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=20, temperature=0)
    assert (answer.object, answer.choices[0].message.role, answer.id[:9]) == (
        "chat.completion",
        "assistant",
        "chatcmpl-",
    )
    frame = "Be short.\n用户：小林去了哪里?\n助手："
    same = live.ask(
        prompt=frame, temperature=0, max_tokens=20, stop=["\nUser:", "\nAssistant:", "\n用户：", "\n助手："]
    )
    assert answer.choices[0].message.content == same.json()["choices"][0]["text"]
    assert answer.usage.model_dump(exclude_none=True) == same.json()["usage"]
    parts = [
        dict(MESSAGES[0], role="developer"),
        {"role": "user", "content": [{"type": "text", "text": "小林去了哪里?"}]},
    ]
    again = client.chat.completions.create(model="tiny", messages=parts, max_tokens=20, temperature=0)
    assert again.choices[0].message.content == answer.choices[0].message.content
    free = live.ask("chat/completions", messages=MESSAGES, temperature=0).json()  # no length: as the context allows
    assert free["choices"][0]["finish_reason"] == "stop" or free["usage"]["total_tokens"] == CONTEXT


@pytest.mark.parametrize("fields", [{"temperature": 0, "max_tokens": 40}, SAMPLED | {"seed": 5, "n": 2}], ids=str)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_is_the_whole_in_pieces(
    live: Live, prompt: str, chat: bool, probabilities: bool, fields: dict[str, Any]
) -> None:
    path = "chat/completions" if chat else "completions"
    fields = fields | ({"messages": MESSAGES} if chat else {"prompt": prompt})
    if probabilities:
        fields |= {"logprobs": True, "top_logprobs": 3} if chat else {"logprobs": 3}
    whole = live.ask(path, **fields).json()
    found = events(live.ask(path, **fields, stream=True, stream_options={"include_usage": True}))
    *pieces, last = found
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert len({event["id"] for event in found}) == 1
    assert all(event["usage"] is None for event in pieces)
    for choice in whole["choices"]:
        mine = [event["choices"][0] for event in pieces if event["choices"][0]["index"] == choice["index"]]
        assert [piece["finish_reason"] for piece in mine if piece["finish_reason"]] == [choice["finish_reason"]]
        assert mine[-1]["finish_reason"]
        odds = [piece["logprobs"] for piece in mine if piece["logprobs"]]
        if chat:
            assert mine[0]["delta"] == {"role": "assistant", "content": ""}
            text = "".join(piece["delta"].get("content", "") for piece in mine)
            assert text == choice["message"]["content"]
            joined = [row for odd in odds for row in odd["content"]]
            assert not probabilities or joined == choice["logprobs"]["content"]
        else:
            assert "".join(piece["text"] for piece in mine) == choice["text"]
            for key in choice["logprobs"] or ():
                assert list(itertools.chain(*(odd[key] for odd in odds))) == choice["logprobs"][key]
        assert bool(odds) == probabilities
    plain = events(live.ask(path, **fields, stream=True))
    assert all("usage" not in event for event in plain)


def test_the_client_streams(client: Any, prompt: str) -> None:
    asked = {"model": "tiny", "max_tokens": 30, "temperature": 0}
    whole = client.completions.create(prompt=prompt, **asked)
    parts = list(client.completions.create(prompt=prompt, stream=True, **asked))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    talk = client.chat.completions.create(messages=MESSAGES, **asked)
    options = {"include_usage": True}
    *said, last = client.chat.completions.create(messages=MESSAGES, stream=True, stream_options=options, **asked)
    assert "".join(part.choices[0].delta.content or "" for part in said) == talk.choices[0].message.content
    assert last.usage == talk.usage


def test_probabilities_are_the_models(client: Any, live: Live, subject: Subject, prompt: str) -> None:
    ids = encode_prompt(subject.tokenizer, prompt, subject.bos)
    asked = {"model": "tiny", "max_tokens": 24, "temperature": 0.9, "seed": 3, "frequency_penalty": 0.5}
    odds = client.completions.create(prompt=ids, logprobs=2, **asked).choices[0]
    found = odds.logprobs
    same = Sampling(24, temperature=0.9, seed=3, frequency_penalty=0.5, logprobs=2)
    answer = [token for delta in live.engine.stream(ids, same) for token in delta.tokens]
    assert found.tokens == [name(token.text) for token in answer]
    expected = slow_logprobs(subject.model, [*ids, *(token.id for token in answer)])[len(ids) - 1 :]
    torch.testing.assert_close(torch.tensor(found.token_logprobs).double(), expected, atol=1e-4, rtol=1e-4)
    for token, logprob, top in zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True):
        assert 1 <= len(top) <= 3  # the two likeliest, and what was drawn; two tokens may have one text
        assert top[token] >= logprob
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        assert token.startswith("bytes:") or odds.text[offset:].startswith(token)
    talk = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=4, **asked).choices[0]
    rows = talk.logprobs.content
    said = b"".join(bytes(row.bytes) for row in rows).decode("utf-8", "replace")
    assert said.startswith(talk.message.content)
    for row in rows:
        rivals = [rival.logprob for rival in row.top_logprobs]
        assert len(rivals) == 4
        assert rivals == sorted(rivals, reverse=True)
        assert rivals[0] >= row.logprob
        assert row.token == bytes(row.bytes).decode("utf-8", "replace")


def name(piece: bytes) -> str:
    """As OpenAI writes a token."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def test_tokens_that_share_a_text_show_the_likeliest() -> None:
    shape = Shape("m", [b"", b"", b"a"], chat=False, logprobs=True, usage=False)
    tokens = [Token(2, b"a", -0.2, [(2, -0.2), (0, -2.0), (1, -5.0)]), Token(1, b"", -5.0, [(0, -2.0)])]
    found = shape.logprobs(Place(0), tokens)
    assert found
    assert found["top_logprobs"] == [{"a": -0.2, "": -2.0}, {"": -2.0}]
    assert found["token_logprobs"] == [-0.2, -5.0]


def test_where_tokens_begin() -> None:
    place = Place(10)
    pieces = [b"\xe6", b"\xb8\xaf", b"a", b"\xe6\xb8", b"", b"M", b"\xe6", "港".encode(), b"\xff", b"b"]
    offsets = [place.before(piece) for piece in pieces]
    text = b"".join(pieces).decode("utf-8", "replace")
    assert text == "港a\ufffdM\ufffd港\ufffdb"
    assert offsets == [10, 10, 11, 12, 12, 13, 14, 15, 16, 17]


def test_seeds_and_several_answers(client: Any, prompt: str) -> None:
    asked = {"model": "tiny", "prompt": prompt} | SAMPLED
    three = client.completions.create(seed=11, n=3, **asked)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    alone = [client.completions.create(seed=11 + number, **asked) for number in range(3)]
    assert [choice.text for choice in three.choices] == [one.choices[0].text for one in alone]
    assert len({choice.text for choice in three.choices}) == 3
    assert three.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    unseeded = {client.completions.create(**asked).choices[0].text for _ in range(3)}
    assert len(unseeded) > 1


def test_stop_texts(client: Any, live: Live, prompt: str) -> None:
    asked = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 40}
    text = client.completions.create(**asked).choices[0].text
    stop = text[10:13]  # of several tokens, perhaps from within one
    for given_ in (stop, ["never so", stop]):
        found = client.completions.create(stop=given_, **asked)
        assert (found.choices[0].text, found.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
        assert found.usage.completion_tokens <= 40
        streamed = list(client.completions.create(stop=given_, stream=True, **asked))
        assert "".join(part.choices[0].text for part in streamed) == found.choices[0].text
    assert live.idle()


def test_prompts_of_every_kind(client: Any, subject: Subject, prompt: str) -> None:
    asked = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    other = "小林带着"
    one, two = (client.completions.create(prompt=text, **asked).choices[0].text for text in (prompt, other))
    ids = [encode_prompt(subject.tokenizer, text, subject.bos) for text in (prompt, other)]
    for both in ([prompt, other], ids):
        found = client.completions.create(prompt=both, n=2, **asked)
        assert [choice.text for choice in found.choices] == [one, one, two, two]
        assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
        assert found.usage.prompt_tokens == sum(map(len, ids))
    assert client.completions.create(prompt=ids[1], **asked).choices[0].text == two
    assert client.completions.create(prompt="", **asked).usage.prompt_tokens == 1  # <s> alone
    echo = client.completions.create(prompt=[prompt, other], echo=True, **asked)
    assert [choice.text for choice in echo.choices] == [prompt + one, other + two]
    assert client.completions.create(prompt=ids[1], echo=True, **asked).choices[0].text == other + two
    parts = client.completions.create(prompt=prompt, echo=True, stream=True, **asked)
    assert "".join(part.choices[0].text for part in parts) == prompt + one


# Refusals

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"presence_penalty": -3}, "presence_penalty"),
    ({"seed": 1 << 64}, "seed"),
    ({"seed": "a"}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": CONTEXT + 1}, "max_tokens"),
    ({"n": 0}, "n"),
    ({"n": ROWS + QUEUE + 1}, "n"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_everything": True}}, "stream_options"),
    ({"model": 5}, "model"),
    ({"logit_bias": {"5": 100}}, "logit_bias"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"temprature": 1}, "temprature"),
    ({"\ud800": 1}, "?"),
]
WRONG_COMPLETION: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [1, "a"]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": {}}, "prompt"),
    ({"prompt": [100_000]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": "a\ud800"}, "prompt"),
    ({"prompt": "Mira went to Oslo " * 100}, "prompt"),
    ({"prompt": ["a"] * (ROWS + QUEUE + 1)}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": True, "logprobs": 1}, "echo"),
    ({"best_of": 2}, "best_of"),
    ({"suffix": "end"}, "suffix"),
    ({"messages": MESSAGES}, "messages"),
]
WRONG_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": ["hello"]}, "messages[0]"),
    ({"messages": [*MESSAGES, {"role": "robot", "content": "a"}]}, "messages[2].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "user", "content": "\udfff"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "Mira went " * 300}]}, "messages"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"max_completion_tokens": CONTEXT + 1}, "max_completion_tokens"),
    ({"prompt": "a"}, "prompt"),
]


@pytest.mark.parametrize("chat", [False, True])
def test_a_bad_field_is_named(live: Live, chat: bool) -> None:
    path, good = ("chat/completions", {"messages": MESSAGES}) if chat else ("completions", {"prompt": "Mira"})
    for fields, param in WRONG + (WRONG_CHAT if chat else WRONG_COMPLETION):
        body = json.dumps(good | fields)  # as ASCII: httpx would refuse a lone surrogate
        answer = live.http.post(f"/v1/{path}", content=body)
        assert answer.status_code == 400, (fields, answer.text)
        error = answer.json()["error"]
        assert (error["param"], error["type"]) == (param, "invalid_request_error"), (fields, error)
        assert error["message"]
        assert "\n" not in error["message"]
    assert live.engine.stats()[:2] == (0, 0) or live.idle()
    assert live.ask(path, **good, max_tokens=1).status_code == 200


def test_what_changes_nothing_is_taken(live: Live) -> None:
    harmless = {"user": "me", "store": False, "logit_bias": {}, "tools": None, "suffix": None, "top_k": -1, "n": None}
    assert live.ask(prompt="Mira", max_tokens=1, **harmless).status_code == 200


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b"\xff\xfe", b'{"temperature": NaN}', b"[" * 90_000, b'{"seed": 1%s}' % (b"0" * 5000)],
)
def test_what_is_not_json(live: Live, body: bytes) -> None:
    answer = live.http.post("/v1/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


def test_errors_are_those_of_the_client(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="a" * 3000)
    assert (caught.value.param, caught.value.code) == ("prompt", "context_length_exceeded")
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-9", prompt="a")
    assert "tiny" in missing.value.message


def test_paths_and_methods(live: Live) -> None:
    for path, status, code in (("/v1/nothing", 404, "not_found"), ("/v1/completions", 405, "wrong_method")):
        answer = live.http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert live.http.get("/v1/completions").headers["allow"] == "POST"
    assert live.http.post("/v1/models").status_code == 405


def test_a_body_too_large(live: Live) -> None:
    large = b'{"prompt": "' + b"a" * 200_000 + b'"}'
    for content in (large, large[:120_000], iter([large[:70_000], large[70_000:]])):  # with its length, and in chunks
        answer = live.http.post("/v1/completions", content=content)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_keys(subject: Subject, engine: Engine) -> None:
    with live_server(subject, engine, keys=("open sesame", "密钥")) as live:
        for given_ in (None, b"Bearer wrong", b"Bearer \xff\xfe\x80", b"Bearer", b"Basic open sesame", b"Bearer open"):
            headers = {"Authorization": given_} if given_ else {}
            for path in ("/v1/models", "/metrics"):
                answer = live.http.get(path, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            answer = live.http.post("/v1/completions", json={"prompt": "a"}, headers=headers)
            assert answer.json()["error"]["code"] == "invalid_api_key"
        for key in ("open sesame", "密钥"):
            headers = {"Authorization": b"Bearer " + key.encode()}
            assert live.http.get("/v1/models", headers=headers).status_code == 200
        assert live.http.get("/health").status_code == live.http.get("/").status_code == 200
        wrong = openai.OpenAI(base_url=live.address + "/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            wrong.models.list()
        right = wrong.with_options(api_key="open sesame")
        assert right.completions.create(model="tiny", prompt="a", max_tokens=1).choices


def test_foreign_pages(subject: Subject, engine: Engine, live: Live) -> None:
    def ask(live: Live, **headers: str) -> int:
        return live.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}, headers=headers).status_code

    assert live.http.get("/v1/models", headers={"Host": "evil.example:8000"}).json()["error"]["code"] == "wrong_host"
    assert [ask(live, Host=host) for host in ("evil.example", "[", "localhost:1", "[::1]:5")] == [403, 403, 200, 200]
    assert ask(live, Origin="https://evil.example") == 403
    assert ask(live, Origin=live.address) == 200
    assert ask(live, Origin="null") == 403
    with live_server(subject, engine, origins=("https://good.example",)) as open_to:
        assert ask(open_to, Origin="https://good.example") == 200
        assert ask(open_to, Origin="https://evil.example") == 403


def test_preflight(subject: Subject, engine: Engine, live: Live) -> None:
    """What a browser asks before a page of another origin may send JSON with a key."""

    def ask(live: Live, origin: str, method: str = "POST") -> httpx.Response:
        headers = {"Origin": origin, "Access-Control-Request-Method": method}
        headers |= {"Access-Control-Request-Headers": "authorization,content-type"}
        return live.http.options("/v1/completions", headers=headers)

    good, evil = "https://good.example", "https://evil.example"
    with live_server(subject, engine, origins=(good,), keys=("secret",)) as open_to:
        allowed = ask(open_to, good)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, good)
        assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
        assert "POST" in allowed.headers["access-control-allow-methods"]
        assert ask(open_to, good, "DELETE").status_code == 400
        refused = ask(open_to, evil)
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers
        # The page may read what it was refused, too: the key is wrong here.
        wrong = open_to.http.post("/v1/completions", json={"prompt": "a"}, headers={"Origin": good})
        assert (wrong.status_code, wrong.headers["access-control-allow-origin"]) == (401, good)
    with live_server(subject, engine, origins=("*",)) as open_to_all:
        assert ask(open_to_all, evil).headers["access-control-allow-origin"] == "*"
    closed = ask(live, good)
    assert closed.status_code == 405
    assert "access-control-allow-origin" not in closed.headers


# Load, and clients and models that misbehave


def test_a_full_queue(live: Live, prompt: str, slow: None) -> None:
    asked = {"prompt": prompt, "max_tokens": 240, "temperature": 0, "stream": True}
    streams = [live.http.stream("POST", "/v1/completions", json=asked) for _ in range(ROWS + QUEUE)]
    for stream in streams:
        stream.__enter__()
    assert eventually(lambda: live.engine.stats()[:2] == (ROWS, QUEUE))
    refused = live.ask(prompt=prompt)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    metrics = live.http.get("/metrics").text
    assert f"xmodel_running {float(ROWS)}" in metrics
    assert f"xmodel_waiting {float(QUEUE)}" in metrics
    client = openai.OpenAI(base_url=live.address + "/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="tiny", prompt=prompt)
    for stream in streams:
        stream.__exit__(None, None, None)
    assert live.idle()
    assert live.ask(prompt=prompt).status_code == 200


def test_several_answers_enter_together_or_not_at_all(live: Live, prompt: str, slow: None) -> None:
    asked = {"prompt": prompt, "max_tokens": 240, "temperature": 0, "stream": True}
    with live.http.stream("POST", "/v1/completions", json=asked | {"n": ROWS + 1}):
        assert eventually(lambda: live.engine.stats()[:2] == (ROWS, 1))
        assert live.ask(prompt=prompt, n=QUEUE).status_code == 429
        assert eventually(lambda: live.engine.stats()[:2] == (ROWS, 1))  # none of them stayed
    assert live.idle()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row(live: Live, prompt: str, slow: None, stream: bool) -> None:
    before = live.engine.stats().finished["cancelled"]
    body = json.dumps({"prompt": prompt, "max_tokens": 240, "temperature": 0, "stream": stream}).encode()
    with raw(live, b"Content-Length: %d\r\n\r\n" % len(body) + body) as connection:
        assert eventually(lambda: live.engine.stats().running == 1)
        if stream:
            assert b"200 OK" in connection.recv(1000)
    assert eventually(lambda: live.engine.stats().finished["cancelled"] == before + 1)
    assert live.engine.stats().running == 0


def raw(live: Live, rest: bytes) -> socket.socket:
    """A connection that has sent the head of a POST and `rest`."""
    host, _, port = live.address.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + rest)
    return connection


def test_a_client_that_does_not_read_delays_nobody(live: Live, prompt: str) -> None:
    asked = {"prompt": prompt, "max_tokens": 240, "temperature": 0, "stream": True, "logprobs": 20, "n": ROWS}
    body = json.dumps(asked).encode()
    host, _, port = live.address.removeprefix("http://").partition(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect((host, int(port)))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body)
        assert eventually(lambda: live.engine.stats().running == ROWS)
        assert live.ask(prompt=prompt, max_tokens=2).status_code == 200
        assert live.idle()  # its rows are free, though it has read nothing
        assert eventually(lambda: live.service.open_requests <= 1)  # 0 where one write took all that was left
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert received.count(b'"finish_reason":"length"') == ROWS
    assert b"data: [DONE]" in received
    assert eventually(lambda: live.service.open_requests == 0)


def test_answers_that_do_not_end_in_time(subject: Subject, prompt: str, slow: None) -> None:
    with Engine(subject, rows=2) as engine, live_server(subject, engine) as live:
        asked = {"prompt": prompt, "max_tokens": 240, "temperature": 0, "stream": True}
        with live.http.stream("POST", "/v1/completions", json=asked) as stream:
            lines = (line for line in stream.iter_lines() if line)
            assert json.loads(next(lines).removeprefix("data: "))["choices"]
            engine.close(drain=0.02)
            *_, last = lines
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"


def test_a_body_that_does_not_come(subject: Subject, engine: Engine) -> None:
    with live_server(subject, engine, body_seconds=0.2) as live:
        with raw(live, b"Content-Length: 100\r\n\r\n{") as connection:
            answer = b"".join(iter(lambda: connection.recv(4000), b""))  # up to where the server closes it
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"slow_body"' in answer
        with raw(live, b"Content-Length: 100\r\n\r\n{"):
            pass  # leaves in the middle
        assert live.ask(prompt="Mira", max_tokens=1).status_code == 200


def test_a_model_that_fails(live: Live, client: Any, prompt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Batch.step

    def failing(batch: Batch[Any]) -> Any:
        if batch.going[0].length > 20:
            raise RuntimeError("CUDA error: on purpose")
        return step(batch)

    asked = {"prompt": prompt, "max_tokens": 40, "temperature": 0}
    before = live.ask(**asked)
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "step", failing)
        answer = live.ask(**asked)
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert "on purpose" not in answer.text  # what is inside stays in the log
        parts = client.completions.create(model="tiny", stream=True, **asked)
        with pytest.raises(openai.APIError, match="the answer failed"):
            list(parts)
        assert not live.ask(stream=True, **asked).text.rstrip().endswith("[DONE]")
    assert live.ask(**asked).json()["choices"] == before.json()["choices"]
    assert live.http.get("/health").status_code == 200


def test_an_engine_that_is_gone(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(subject, rows=2) as engine, live_server(subject, engine) as live:
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "take", lambda *_: 1 / 0)  # in the thread's own loop
            assert live.ask(prompt="Mira").status_code == 500
        assert eventually(lambda: not engine.alive)
        for path in ("/health", "/health/live"):
            answer = live.http.get(path)
            assert (answer.status_code, answer.json()["status"]) == (503, "failed")
        assert live.ask(prompt="Mira").status_code == 500


def test_metrics(live: Live, prompt: str) -> None:
    def value(line: str) -> float:
        found = [
            row.rpartition(" ")[2] for row in live.http.get("/metrics").text.splitlines() if row.startswith(line + " ")
        ]
        return float(found[0]) if found else 0.0

    lines = (
        'xmodel_http_requests_total{endpoint="/v1/completions",status="200"}',
        'xmodel_http_requests_total{endpoint="other",status="404"}',
        'xmodel_answers_total{finish="length"}',
        "xmodel_new_tokens_total",
        "xmodel_time_to_first_token_seconds_count",
    )
    before = [value(line) for line in lines]
    live.ask(prompt=prompt, max_tokens=7, temperature=0)
    live.http.get("/wp-login.php")
    assert [value(line) - old for line, old in zip(lines, before, strict=True)] == [1, 1, 1, 7, 1]
    assert value("xmodel_cache_capacity_tokens") == live.engine.cells >= ROWS * CONTEXT
    assert value('xmodel_model{model="tiny"}') == 1


def test_many_clients_at_once(subject: Subject, prompt: str) -> None:
    with Engine(subject, rows=16) as engine, live_server(subject, engine) as live:
        asked = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "stream": True}
        expected = live.ask(**asked | {"stream": False}).json()["choices"][0]["text"]
        found: list[str] = []

        def one(number: int) -> None:
            with httpx.Client(base_url=live.address, timeout=60, verify=False) as http:
                if number % 8 == 7:  # leaves at once
                    with http.stream("POST", "/v1/completions", json=asked):
                        return
                text = "".join(
                    event["choices"][0]["text"] for event in events(http.post("/v1/completions", json=asked))
                )
                found.append(text)

        threads = [threading.Thread(target=one, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [expected] * 56
        assert live.idle()
        assert eventually(lambda: live.service.open_requests == 0)


NAMES = ["prompt", "messages", "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n"]
NAMES += ["stream", "stream_options", "logprobs", "top_logprobs", "echo", "best_of", "frequency_penalty", "tools"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner)
)
LIKELY = st.fixed_dictionaries(
    {"prompt": st.text(max_size=20) | ANYTHING, "messages": st.just(MESSAGES) | ANYTHING},
    optional={name: ANYTHING | st.integers(0, 3) | st.floats(0, 1) for name in NAMES[2:]},
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=LIKELY | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), ANYTHING), chat=st.booleans())
def test_no_body_is_a_bug(live: Live, fields: dict[str, Any], chat: bool) -> None:
    if fields.keys() >= {"prompt", "messages"}:
        del fields["prompt" if chat else "messages"]
    path = "/v1/chat/completions" if chat else "/v1/completions"
    answer = live.http.post(path, content=json.dumps(fields))
    assert answer.status_code in (200, 400, 404), answer.text
    assert answer.status_code == 200 or answer.json()["error"]["message"]

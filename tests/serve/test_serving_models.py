"""Models of other kinds behind the server: with a chat template of their own, with weights of 8 bits, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from xmodel.errors import MachineError
from xmodel.inference.batch import Batch
from xmodel.inference.engine import Engine
from xmodel.inference.fast import prepare
from xmodel.inference.sampling import Sampling
from xmodel.inference.subjects import Subject
from xmodel.inference.text import encode_prompt

for extra in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(extra, reason="the extra `serve` is not installed")

from live_server import live_server  # noqa: E402

from xmodel.serve.app import Service  # noqa: E402

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_chat_model_is_asked_by_its_own_template(subject: Subject, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    config = {"chat_template": TEMPLATE, "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    chat, tokenizer = subject._replace(folder=tmp_path), subject.tokenizer
    ids = [tokenizer.bos_id, *tokenizer.encode("[user]Mira </s>"), tokenizer.eos_id, *tokenizer.encode("[assistant]")]
    with Engine(chat, rows=2) as engine, live_server(chat, engine) as live:
        asked: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
        user = [{"role": "user", "content": "Mira </s>"}]  # the user's own </s> is text
        answer = live.ask("chat/completions", messages=user, **asked).json()
        expected = live.ask(prompt=ids, **asked).json()
        assert answer["choices"][0]["message"]["content"] == expected["choices"][0]["text"]
        assert answer["usage"] == expected["usage"]
        refused = live.ask("chat/completions", messages=[{"role": "system", "content": "a"}, *user])
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, "messages")
        assert "no system here" in error["message"]


def test_weights_of_8_bits(subject: Subject) -> None:
    small = subject._replace(model=prepare(make_model(subject.tokenizer.vocab_size, context=64), "int8"))
    ids = encode_prompt(subject.tokenizer, "小林 and Mira", subject.bos)
    with Engine(small, rows=4) as engine, live_server(small, engine) as live:
        expected = "".join(delta.text for delta in engine.stream(ids, Sampling(20)))
        asked = {"prompt": ["小林 and Mira", "The"], "temperature": 0, "max_tokens": 20}
        choices = live.ask(**asked).json()["choices"]
        assert choices[0]["text"] == expected
        assert choices[0]["text"] != choices[1]["text"]
        sampled = {"prompt": "The", "seed": 3, "max_tokens": 20, "logprobs": 1}
        first, again = live.ask(**sampled).json()["choices"], live.ask(**sampled).json()["choices"]
        assert first == again


def test_a_model_that_cannot_answer_is_not_served(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(subject, rows=2) as engine:
        Service(subject, engine).warm_up()
        monkeypatch.setattr(Batch, "step", lambda _: 1 / 0)
        with pytest.raises(MachineError, match="failed at its first answer"):
            Service(subject, engine).warm_up()

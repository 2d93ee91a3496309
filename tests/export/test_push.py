"""`--push` by the hub's real client, to a small hub on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="the extra `hf`")
pytest.importorskip("uvicorn", reason="the extra `serve`")
pytest.importorskip("starlette", reason="the extra `serve`")

from fake_hub import TOKEN, commands, fake_hub
from made_run import made_model, make_run


def test_what_is_pushed_is_what_was_exported(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", model=made_model())

    def push(name: str, out: str, *more: str) -> list:
        return ["export", "hf", run, "--out", tmp_path / out, "--push", name, *more]

    with fake_hub({}) as hub:
        pushed, again, other, gguf, stranger = commands(
            hub, tmp_path / "home", push("me/first", "a"), push("me/first", "b", "--dtype", "fp32"), push("you/x", "c"),
            ["export", "gguf", run, "--out", tmp_path / "d.gguf", "--push", "me/second", "--public"],
            ["token", "hf_wrong"], push("me/third", "e"), token=TOKEN,
        )  # fmt: skip
    assert pushed["out"].splitlines()[-1] == f"{hub.url}/me/first"
    assert again["code"] == 0  # one that is there gets a new version
    sent = hub.repositories["models/me/first"]
    assert sent == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert b'from_pretrained("me/first")' in sent["README.md"]
    kept = [one.get("private", one.get("visibility") == "private") for one in hub.made]  # as older clients say it, too
    assert kept == [True, True, False]
    assert gguf["code"] == 0
    assert hub.repositories["models/me/second"]["d.gguf"] == (tmp_path / "d.gguf").read_bytes()
    assert (other["code"], other["kind"]) == (2, "UserError")
    assert "--push you/x: the hub answered 403: " in other["message"]
    assert "rights" in other["message"]
    assert "\n" not in other["message"]
    assert (stranger["code"], "the hub answered 401" in stranger["message"]) == (2, True)
    assert (tmp_path / "e" / "config.json").is_file()  # the export stands
    assert set(hub.repositories) == {"models/me/first", "models/me/second"}

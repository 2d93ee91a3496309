"""`xmodel export`, and `--push` with a hub that is not there: nothing is sent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
from click.testing import CliRunner
from made_run import STEP, made_model, make_run

from xmodel.cli.main import cli
from xmodel.errors import MachineError, UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), model=made_model())


def export(*arguments: object) -> str:
    done = CliRunner().invoke(cli, ["export", *map(str, arguments)], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.stdout


class Hub:
    """In the place of huggingface_hub.HfApi: keeps what it is given."""

    made: list[dict[str, Any]]
    sent: dict[str, bytes]
    error: Exception | None = None

    def __init__(self, **arguments: Any) -> None: ...

    def create_repo(self, repository: str, **arguments: Any) -> None:
        if Hub.error:
            raise Hub.error
        Hub.made.append({"repository": repository, **arguments})

    def create_commit(self, repository: str, operations: Any, **arguments: Any) -> None:
        for one in operations:
            content = one.path_or_fileobj
            Hub.sent[one.path_in_repo] = content if isinstance(content, bytes) else Path(content).read_bytes()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.made, Hub.sent, Hub.error = [], {}, None
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_made_up")
    return Hub


def test_a_run_or_one_of_its_checkpoints(run: Path, tmp_path: Path) -> None:
    assert export("hf", run, "--out", tmp_path / "a", "--dtype", "fp32", "--shard-size", "1MB").strip() == str(
        tmp_path / "a"
    )
    export("hf", run / "checkpoints" / STEP, "--out", tmp_path / "b", "--dtype", "fp32")
    weights = "model.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()
    export("gguf", run / "checkpoints" / STEP, "--out", tmp_path / "c.gguf", "--type", "q8_0")
    assert gguf.GGUFReader(tmp_path / "c.gguf").fields["general.file_type"].contents() == 7
    assert (tmp_path / "c.Modelfile").is_file()


def test_mistakes_leave_nothing_behind(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "x.Modelfile").touch()
    for arguments, message in (
        (("hf", run, "--out", tmp_path / "there"), "exists already"),
        (("gguf", run, "--out", tmp_path / "x.gguf"), r"x\.Modelfile exists already"),
        (("gguf", run, "--out", tmp_path / "x.bin"), r"ends in \.gguf"),
        (("hf", tmp_path, "--out", tmp_path / "y"), r"no recipe\.yaml"),
        (("hf", run / "checkpoints" / "step-000000041", "--out", tmp_path / "y"), "step-000000041"),
        (("hf", run, "--out", tmp_path / "y", "--public"), "add --push"),
        (("hf", run, "--out", tmp_path / "y", "--push", "name"), "not OWNER/NAME"),
    ):
        with pytest.raises(UserError, match=message):
            export(*arguments)
    assert CliRunner().invoke(cli, ["export", "hf", str(run), "--out", "y", "--shard-size", "many"]).exit_code == 2
    assert CliRunner().invoke(cli, ["export", "gguf", str(run), "--out", "y.gguf", "--type", "q4_0"]).exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "x.Modelfile"]


def test_a_damaged_checkpoint(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    weights = again / "checkpoints" / STEP / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for arguments in (("hf", "--out", tmp_path / "out"), ("gguf", "--out", tmp_path / "out.gguf")):
        with pytest.raises(MachineError, match="damaged"):
            export(arguments[0], again / "checkpoints" / STEP, *arguments[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_push_sends_a_private_repository(run: Path, tmp_path: Path, hub: type[Hub]) -> None:
    said = export("hf", run, "--out", tmp_path / "a", "--push", "me/my-model")
    assert said.splitlines()[-1] == "https://huggingface.co/me/my-model"
    assert hub.made == [{"repository": "me/my-model", "repo_type": "model", "private": True, "exist_ok": True}]
    assert hub.sent == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert b'from_pretrained("me/my-model")' in hub.sent["README.md"]
    hub.sent.clear()
    export("gguf", run, "--out", tmp_path / "a.gguf", "--push", "me/my-model", "--public")
    assert hub.made[1]["private"] is False
    assert sorted(hub.sent) == ["README.md", "a.Modelfile", "a.gguf"]
    assert hub.sent["a.gguf"] == (tmp_path / "a.gguf").read_bytes()


def test_push_that_fails_says_why(run: Path, tmp_path: Path, hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    hub.error = errors.OfflineModeIsEnabled("offline mode")
    with pytest.raises(MachineError, match="me/my-model: the hub cannot be reached"):
        export("hf", run, "--out", tmp_path / "a", "--push", "me/my-model")
    assert (tmp_path / "a" / "model.safetensors").is_file()  # the export stands
    refused: Any = errors.HfHubHTTPError.__new__(errors.HfHubHTTPError)
    refused.args, refused.response = ("403 Forbidden: me is not yours",), type("Answer", (), {"status_code": 403})()
    hub.error = refused
    with pytest.raises(UserError, match="the hub answered 403"):
        export("hf", run, "--out", tmp_path / "b", "--push", "me/my-model")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError, match="no token of the hub"):
        export("hf", run, "--out", tmp_path / "c", "--push", "me/my-model")
    assert not (tmp_path / "c").exists()  # found out before any work

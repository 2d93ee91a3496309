"""What is told before a model is made."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the tokens folder of ranks.py

import ranks

from xmodel.errors import MachineError, UserError
from xmodel.pretrain import checks
from xmodel.pretrain.checkpoint_files import refuse_other
from xmodel.pretrain.checks import check_before, log_epochs, verify_tokens
from xmodel.recipe.settings import Recipe


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    ranks.make_tokens(tmp_path / "tokens")
    return tmp_path / "tokens"


def with_vocabulary(size: int) -> Recipe:
    recipe = ranks.recipe()
    recipe.model.vocab_size = size
    return recipe


def test_epochs_of_each_source_are_said(tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = ranks.recipe(steps=1000)
    log_epochs(recipe, check_before(recipe, tokens, tmp_path, world=2))
    # 12,000 samples; each source has (1500 - 1) // 16 = 93 windows
    assert "a 90.3, b 38.7; more than 4 teach little: a, b" in capsys.readouterr().err
    recipe = ranks.recipe(steps=10)
    log_epochs(recipe, check_before(recipe, tokens, tmp_path, world=2))
    assert "a 0.9, b 0.39\n" in capsys.readouterr().err


def test_ids_beyond_the_vocabulary_are_refused(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.vocab_size: 64, but .* a tokenizer with 65 pieces"):
        check_before(with_vocabulary(64), tokens, tmp_path, world=1)
    path = tokens / "train" / "b-00000.bin"
    ids = np.fromfile(path, "<u2")
    ids[700] = 66
    ids.tofile(path)
    with pytest.raises(UserError, match=r"source 'b' of .* has the id 66; it was encoded with another tokenizer"):
        check_before(ranks.recipe(), tokens, tmp_path, world=1)


def test_a_batch_that_cannot_be_shared_is_refused(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="12 sequences cannot be shared equally by 5"):
        check_before(ranks.recipe(), tokens, tmp_path, world=5)


def test_a_checkpoint_of_another_tokenizer_or_version_is_refused(tmp_path: Path) -> None:
    state = {"format": 2, "step": 7, "tokenizer": "abc"}
    (tmp_path / "state.json").write_text(json.dumps(state))
    from xmodel.model.config import to_hf

    (tmp_path / "config.json").write_text(json.dumps(to_hf(ranks.SHAPE)))
    refuse_other(tmp_path, ranks.SHAPE, "abc")
    refuse_other(tmp_path, ranks.SHAPE, None)
    with pytest.raises(UserError, match=r"tokens of another tokenizer \(abc, the tokens now are of xyz\)"):
        refuse_other(tmp_path, ranks.SHAPE, "xyz")
    (tmp_path / "state.json").write_text(json.dumps({"step": 7}))
    with pytest.raises(UserError, match=r"of format 1, this version of xmodel reads format 2"):
        refuse_other(tmp_path, ranks.SHAPE, "abc")


@pytest.mark.parametrize(
    ("asked", "limit", "found"), [("auto", 1e9, True), ("auto", 10, False), ("always", 10, True), ("never", 1e9, False)]
)
def test_a_flipped_bit_in_a_shard_is_found(
    asked: str, limit: float, found: bool, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "VERIFIED_BYTES", limit)
    recipe = ranks.recipe(verify_tokens=asked)
    for rank in range(3):
        verify_tokens(recipe, tokens, rank, 3)
    path = tokens / "train" / "b-00000.bin"
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.write_bytes(bytes(data))

    def all_ranks() -> None:
        for rank in range(3):
            verify_tokens(recipe, tokens, rank, 3)

    if found:
        with pytest.raises(MachineError, match=r"b-00000\.bin: damaged"):
            all_ranks()
    else:
        all_ranks()

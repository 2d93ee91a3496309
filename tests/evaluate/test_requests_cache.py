"""Tokenised texts on disk: the same ids, never stale, never in the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import texts, train_tokenizer

from xmodel.evaluate import requests_cache
from xmodel.evaluate.requests_cache import encode_cached


class Counting:
    """A tokenizer that counts the texts it encodes."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.folder, self.seen = tokenizer, tokenizer.folder, 0

    def encode_batch(self, these):
        self.seen += len(these)
        return self.tokenizer.encode_batch(these)


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_cache, "WORTH", 0)


def test_the_second_time_nothing_is_encoded(tokenizer, tmp_path: Path) -> None:
    counting, these = Counting(tokenizer), [*texts()[:20], "", "小林 "]
    expected = tokenizer.encode_batch(these)
    for _ in range(2):
        for found, ids in zip(encode_cached(counting, these, tmp_path), expected, strict=True):
            np.testing.assert_array_equal(found, ids)
    assert counting.seen == len(these)
    encode_cached(counting, these[::-1], tmp_path)
    encode_cached(counting, [these[0] + these[1], *these[2:]], tmp_path)
    assert counting.seen == 3 * len(these) - 1


def test_another_tokenizer_and_a_damaged_file_are_not_believed(tokenizer, tmp_path: Path) -> None:
    these = texts()[:5]
    encode_cached(Counting(tokenizer), these, tmp_path / "cache")
    other = Counting(train_tokenizer(tmp_path / "other"))
    (tmp_path / "other" / "tokenizer_config.json").write_text("{}")
    encode_cached(other, these, tmp_path / "cache")
    assert other.seen == 5
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:50])
    again = Counting(tokenizer)
    found = encode_cached(again, these, tmp_path / "cache")
    assert again.seen == 5
    np.testing.assert_array_equal(found[0], tokenizer.encode_batch(these)[0])


def test_no_room_for_a_cache(tokenizer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = encode_cached(tokenizer, texts()[:3], tmp_path / "file" / "cache")
    np.testing.assert_array_equal(found[0], tokenizer.encode_batch(texts()[:1])[0])


def test_the_cache_stays_within_its_bound(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        encode_cached(tokenizer, texts()[number : number + 3], tmp_path)
    files = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    monkeypatch.setattr(requests_cache, "KEPT", sum(path.stat().st_size for path in files[2:]) + 2000)
    encode_cached(tokenizer, texts()[7:8], tmp_path)
    assert not files[0].exists()
    assert files[-1].exists()

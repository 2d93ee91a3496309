"""A tiny tokenizer and tiny random models, for tests of what stands behind them. Fixtures: import them in a conftest.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Model
from xmodel.recipe.settings import Tokenizer as TokenizerSettings
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.train import train

# Figures of metrics.jsonl that differ between two runs of the same recipe.
TIMELESS = ("time", "seconds", "tokens_per_second", "mfu_palm", "mfu_causal", "data_wait", "memory_peak")
TIMELESS += ("step_seconds_median", "step_seconds_max")

NAMES = ("Mira", "Tom", "Anna", "Lin Wei", "Oskar", "Jia")
PLACES = ("Paris", "Oslo", "the old harbour", "a small village", "the green hill")
MEN = ("小林", "安娜", "王明", "老张", "李雷")
ORTE = ("巴黎", "北京", "旧港口", "小山村", "绿色的山")


def texts() -> list[str]:
    """A few hundred short bilingual documents, the same every time."""
    english = [
        f"{name} went to {place} with {number} red apples.\nThe road was long, but {name} was glad."
        for name in NAMES
        for place in PLACES
        for number in (3, 17, 240)
    ]
    chinese = [
        f"{name}带着{number}个红苹果去了{place}。\n路很长，可是{name}很高兴。"
        for name in MEN
        for place in ORTE
        for number in (3, 17, 240)
    ]
    code = [
        f"def add_{number}(value):\n    if value > {number}:\n\treturn value\n    return value + {number}\n"
        for number in range(20)
    ]
    return english + chinese + code


def train_tokenizer(folder: Path, bos: bool = True) -> Tokenizer:
    train(texts(), TokenizerSettings(vocab_size=420), folder, seed=0, add_bos=bos)
    return Tokenizer.load(folder)


def make_model(vocab_size: int = 420, context: int = 64, seed: int = 0, tied: bool = False) -> Transformer:
    """A random model whose weights are large enough for distributions that are not flat."""
    shape = Model(
        layers=2,
        heads=4,
        kv_heads=2,
        hidden=32,
        ffn=48,
        context_length=context,
        position_table=2 * context,
        vocab_size=vocab_size,
        init_std=0.3,
        tied_embeddings=tied,
    )
    model = Transformer(shape)
    model.init_weights(seed)
    return model.eval()


def count_tokens(patch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens go through any model from now on, one number for each pass."""
    seen: list[int] = []
    hidden = Transformer.hidden

    def counted(self: Transformer, tokens_BT: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        seen.append(tokens_BT.numel())
        return hidden(self, tokens_BT, *rest, **more)

    patch.setattr(Transformer, "hidden", counted)
    return seen


@torch.no_grad()
def slow_logprobs(model: Transformer, ids: list[int]) -> torch.Tensor:
    """log P(ids[i] | ids[:i]) for i >= 1, one unpadded forward pass, in float64 after the logits: the plain definition."""
    logits = model(torch.tensor([ids[:-1]]))[0].double()
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Transformer:
    return make_model(tokenizer.vocab_size)

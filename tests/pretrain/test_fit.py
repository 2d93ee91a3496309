"""The micro-batch finder, with devices that run out of memory on purpose."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodel.errors import UserError
from xmodel.model.transformer import Transformer
from xmodel.pretrain import fit
from xmodel.pretrain.fit import available_memory, divisors, dry_run, fit_micro_batch, largest_fitting, memory_estimate
from xmodel.pretrain.parallel import Place
from xmodel.recipe.settings import Model, Pretrain

SHAPE = Model(layers=1, heads=2, kv_heads=1, hidden=16, ffn=32, context_length=16, position_table=16, vocab_size=64)
CPU = Place(0, 1, torch.device("cpu"))


class Card(Transformer):
    """A model on a card that holds `room` sequences."""

    def __init__(self, room: int) -> None:
        super().__init__(SHAPE)
        self.init_weights(0)
        self.room, self.tried = room, []

    def forward(self, tokens_BT: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.tried.append(len(tokens_BT))
        if len(tokens_BT) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(tokens_BT, *args, **kwargs)


def found(room: int, **settings: Any) -> tuple[int, list[int]]:
    card = Card(room)
    optimizer = torch.optim.AdamW(card.parameters())
    micro = fit_micro_batch(card, optimizer, SHAPE, Pretrain(global_batch=24, **settings), CPU)
    assert all(parameter.grad is None for parameter in card.parameters())
    return micro, card.tried


@given(number=st.integers(1, 2000), limit=st.integers(1, 2000))
def test_the_largest_divisor_that_fits_is_found(number: int, limit: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if math.gcd(d, number) == d]
    expected = max(d for d in range(1, number + 1) if number % d == 0 and d <= limit)
    assert largest_fitting(divisors(number), lambda micro: micro <= limit) == expected


@pytest.mark.parametrize(("room", "micro", "tried"), [(100, 24, [24]), (7, 6, [24, 12, 8, 6]), (1, 1, None)])
def test_zero_finds_the_most_that_fit(room: int, micro: int, tried: list[int] | None) -> None:
    result, runs = found(room, micro_batch=0)
    assert result == micro
    assert tried is None or runs == tried


def test_what_fits_is_kept_and_run_once() -> None:
    assert found(8, micro_batch=4) == (4, [4])


def test_what_does_not_fit_is_refused_with_the_largest_that_does() -> None:
    with pytest.raises(UserError, match=r"pretrain\.micro_batch: 8 sequences of 16 tokens .* largest that does is 4"):
        found(5, micro_batch=8)
    with pytest.raises(UserError, match="not even one sequence of 16 tokens fits"):
        found(0, micro_batch=8)


def test_a_cpu_is_judged_by_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is too large is even tried: nobody catches an overrun there."""
    fixed, each = memory_estimate(SHAPE, Pretrain())
    monkeypatch.setattr(fit, "available_memory", lambda: fixed + 7 * each + 100)
    assert found(1000, micro_batch=6) == (6, [6])
    with pytest.raises(UserError, match="largest that does is 6"):
        found(1000, micro_batch=12)
    monkeypatch.setattr(fit, "available_memory", lambda: fixed + 2 * 5 * each)  # half is left to others
    assert found(1000, micro_batch=0) == (4, [4])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(fit, "available_memory", lambda: 2 * (fixed + 3 * each))
    with pytest.raises(UserError, match="largest that does is 3"):
        found(1000, micro_batch=4)
    monkeypatch.setattr(fit, "available_memory", lambda: fixed // 2)
    with pytest.raises(UserError, match="not even one"):
        found(1000, micro_batch=1)


def test_ranks_agree_on_the_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank, played by the sum over ranks, has room for less."""
    place = Place(0, 2, torch.device("cpu"))

    def with_other_rank(self: Place, values: torch.Tensor) -> torch.Tensor:
        return values + torch.tensor([0, 3])

    monkeypatch.setattr(Place, "sum", with_other_rank)
    assert fit.agreed_least(8, place) == 3
    assert fit.agreed_least(2, place) == 2


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    model = Card(100)
    with pytest.raises(ValueError, match="tokens are more than"):
        dry_run(model, 2, 999, torch.device("cpu"))


def test_the_estimate_knows_what_each_option_costs() -> None:
    """The reference model: its states are 21 GB, and activations are what checkpointing makes smaller."""
    shape = Model(layers=24, heads=32, kv_heads=4, hidden=2048, ffn=5632, context_length=4096, vocab_size=32_000)
    fixed, none = memory_estimate(shape, Pretrain())
    assert 18 * 1.188e9 < fixed < 22e9
    _, selective = memory_estimate(shape, replace(Pretrain(), activation_checkpointing="selective"))
    _, full = memory_estimate(shape, replace(Pretrain(), activation_checkpointing="full"))
    _, exact = memory_estimate(shape, replace(Pretrain(), precision="fp32"))
    assert full < 0.2 * none
    assert 0.4 * none < selective < 0.7 * none < none < exact
    assert 10**8 < available_memory() < 10**14

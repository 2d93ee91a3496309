"""Width transfer: the parametrisation of Tensor Programs V, and what it is for (its coordinate check)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from xmodel.model.transformer import Compute, Transformer
from xmodel.model.width import initial_std, kind, rate_factor
from xmodel.pretrain.optim import guarded_step, make_optimizer, set_learning_rate
from xmodel.recipe.settings import Model, Pretrain

BASE = Model(layers=2, heads=2, kv_heads=1, hidden=32, ffn=64, vocab_size=64, context_length=32)


def wide(times: int, on: bool = True) -> Model:
    """`times` as wide, with more heads of the same size."""
    shape = replace(BASE, hidden=32 * times, ffn=64 * times, heads=2 * times, kv_heads=times)
    return replace(shape, width_base=32) if on else shape


def test_the_table_of_the_paper() -> None:
    """Tensor Programs V, table 3, Adam: at four times the width."""
    model, names = wide(4), dict(Transformer(wide(4)).named_parameters())
    expected = {"embedding": (0.02, 1), "hidden": (0.02 / 2, 1 / 4), "head": (0.02 / 4, 1 / 4), "vector": (0.02, 1)}
    for name, parameter in names.items():
        assert (initial_std(name, model), rate_factor(name, model)) == expected[kind(name)], name
        assert (parameter.dim() == 1) == (kind(name) == "vector")
    assert {kind(name) for name in names} == set(expected)
    assert rate_factor("model.layers.0.mlp.up_proj.weight", model, muon=True) == 1 / 2


def test_at_its_base_width_nothing_changes() -> None:
    plain, transferred = Transformer(BASE), Transformer(replace(BASE, width_base=32))
    for model in (plain, transferred):
        model.init_weights(0)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), transferred.parameters(), strict=True))
    assert [g["lr"] for g in make_optimizer(transferred, Pretrain()).param_groups] == [6e-4, 6e-4]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_decay_does_not_depend_on_the_scaled_rate(optimizer: str) -> None:
    model = Transformer(wide(4))
    model.init_weights(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = make_optimizer(model, Pretrain(optimizer=optimizer, weight_decay=0.1))  # type: ignore[arg-type]
    set_learning_rate(made, 1e-2)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    guarded_step(made, torch.tensor(1.0))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (1 - 1e-3 if p.dim() == 2 else 1), msg=name)


def changes(times: int, on: bool, optimizer: str) -> tuple[float, float]:
    """Root mean square change, after three steps, of the last hidden states and of the logits."""
    model = Transformer(wide(times, on))
    model.init_weights(0)
    made = make_optimizer(model, Pretrain(optimizer=optimizer, weight_decay=0, peak_lr=1e-2))  # type: ignore[arg-type]
    tokens = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(0))

    def outputs() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            hidden = model.model.embed_tokens.weight[tokens[:, :-1]]
            for block in model.model.layers:
                hidden = block(hidden, model.rotary[:, :32], Compute(torch.float32))
            return hidden, model(tokens[:, :-1])

    start = outputs()
    for _ in range(3):
        (model.loss(tokens[:, :-1], tokens[:, 1:]) / 128).backward()
        guarded_step(made, torch.tensor(1.0))
        made.zero_grad()
    hidden, logits = (
        (after - before).square().mean().sqrt().item() for before, after in zip(start, outputs(), strict=True)
    )
    return hidden, logits


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_coordinates_change_as_much_at_every_width(optimizer: str) -> None:
    """The coordinate check of Tensor Programs V (appendix D.1), from width 32 to 256; without it they grow."""
    narrow, broad, without = (changes(1, True, optimizer), changes(8, True, optimizer), changes(8, False, optimizer))
    for name, small, large, plain in zip(("hidden", "logits"), narrow, broad, without, strict=True):
        assert 0.4 < large / small < 1.6, (name, small, large)
        assert plain / small > 2, (name, small, plain)

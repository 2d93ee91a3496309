"""The optimizer's groups, the norms, and that a gradient that is not finite changes nothing."""

from __future__ import annotations

import pytest
import torch

from xmodel.model.transformer import Transformer
from xmodel.pretrain.optim import clip_grad_norm, global_norm, guarded_step, make_optimizer
from xmodel.recipe.settings import Model, Pretrain

SHAPE = Model(layers=2, heads=4, kv_heads=2, hidden=32, ffn=48, vocab_size=64, context_length=16)


@pytest.fixture
def model() -> Transformer:
    model = Transformer(SHAPE)
    model.init_weights(0)
    tokens = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(0))
    model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    return model


def test_decay_is_for_matrices_only(model: Transformer) -> None:
    optimizer = make_optimizer(model, Pretrain(weight_decay=0.1, beta2=0.95, peak_lr=6e-4))
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() >= 2 for p in decayed["params"])
    assert all(p.dim() == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
    assert decayed["betas"] == (0.9, 0.95)
    assert decayed["lr"] == 6e-4
    assert decayed["fused"]


def test_norm_is_that_of_one_long_vector(model: Transformer) -> None:
    expected = torch.cat([p.detach().flatten() for p in model.parameters()]).norm()
    torch.testing.assert_close(global_norm(model.parameters()), expected)


@pytest.mark.parametrize("limit", [0.5, 1e6, 0.0])
def test_clipping_equals_pytorchs(model: Transformer, limit: float) -> None:
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    norm = clip_grad_norm(model.parameters(), limit)
    after = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    for p, grad in zip(model.parameters(), before, strict=True):
        p.grad = grad.clone()
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(model.parameters(), limit or float("inf")))
    for p, grad in zip(model.parameters(), after, strict=True):
        torch.testing.assert_close(grad, p.grad)
    if limit == 1e6:
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_guarded_step_is_a_step(model: Transformer) -> None:
    twin = Transformer(SHAPE)
    twin.load_state_dict(model.state_dict())
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    settings = Pretrain(weight_decay=0.1, peak_lr=1e-2)
    guarded_step(make_optimizer(model, settings), clip_grad_norm(model.parameters(), 0.0))
    make_optimizer(twin, settings).step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(model: Transformer, bad: float) -> None:
    optimizer = make_optimizer(model, Pretrain())
    guarded_step(optimizer, clip_grad_norm(model.parameters(), 1.0))
    weights = [p.detach().clone() for p in model.parameters()]
    moments = [{key: value.clone() for key, value in optimizer.state[p].items()} for p in model.parameters()]
    gradient = model.model.norm.weight.grad
    assert gradient is not None
    gradient[3] = bad
    norm = clip_grad_norm(model.parameters(), 1.0)
    assert not norm.isfinite()
    guarded_step(optimizer, norm)
    for p, before, state in zip(model.parameters(), weights, moments, strict=True):
        assert torch.equal(p, before)
        assert all(torch.equal(optimizer.state[p][key], value) for key, value in state.items())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    guarded_step(optimizer, clip_grad_norm(model.parameters(), 1.0))  # and the next good one counts again
    assert all(optimizer.state[p]["step"] == 2 for p in model.parameters())

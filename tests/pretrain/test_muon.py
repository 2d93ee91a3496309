"""Muon against the singular value decomposition and torch's own; its guard; and its work shared by several ranks."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import free_port
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from xmodel.model.transformer import Transformer
from xmodel.pretrain.checkpoint import load_checkpoint, save_checkpoint
from xmodel.pretrain.muon import orthogonalize, orthogonalized
from xmodel.pretrain.optim import clip_grad_norm, guarded_step, make_optimizer, set_learning_rate
from xmodel.recipe.settings import Model, Pretrain

SHAPE = Model(layers=2, heads=5, kv_heads=1, hidden=30, ffn=47, vocab_size=64, context_length=16)
SETTINGS = Pretrain(optimizer="muon", peak_lr=1e-2, weight_decay=0.1)


def polar(x: torch.Tensor) -> torch.Tensor:
    """U·Vᵀ of the singular value decomposition, in float64: what Newton-Schulz approaches."""
    u, _, vh = torch.linalg.svd(x.double(), full_matrices=False)
    return u @ vh


def fresh(seed: int = 0) -> Transformer:
    model = Transformer(SHAPE)
    model.init_weights(seed)
    return model


def backward(model: Transformer, step: int) -> None:
    tokens = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(step))
    (model(tokens[:, :-1], targets_BT=tokens[:, 1:]) / 32).backward()


def advance(model: Transformer, optimizer: torch.optim.AdamW, step: int) -> None:
    backward(model, step)
    guarded_step(optimizer, clip_grad_norm(model.parameters(), 1.0))
    optimizer.zero_grad()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3), st.floats(-6, 6), st.integers(0, 1000))
def test_singular_values_become_one(rows: int, columns: int, n: int, scale: float, seed: int) -> None:
    """Whatever the scale of the matrix; singular values between 1 % and all of the largest come within 10 % of one."""
    generator = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(n, rows, columns, generator=generator), full_matrices=False)
    s = 10 ** (-2 * torch.rand(n, 1, min(rows, columns), generator=generator))
    out = orthogonalize((u * s) @ vh * 10**scale)
    assert out.dtype == torch.bfloat16
    assert out.shape == (n, rows, columns)
    values = torch.linalg.svdvals(out.float())
    assert (values > 0.85).all()
    assert (values < 1.15).all()
    assert ((u @ vh - out.float()).norm(dim=(1, 2)) <= 0.15 * math.sqrt(min(rows, columns))).all()


def test_a_matrix_of_zeros_stays_so() -> None:
    assert not orthogonalize(torch.zeros(2, 3, 5)).any()


def test_two_steps_against_the_definition() -> None:
    """Momentum, Nesterov's look ahead, orthogonalisation, Moonlight's scale, decoupled decay."""
    model = fresh()
    optimizer = make_optimizer(model, SETTINGS)
    name = "model.layers.1.mlp.down_proj.weight"
    p = dict(model.named_parameters())[name]
    expected, momentum = p.detach().double().clone(), torch.zeros_like(p, dtype=torch.float64)
    for step in range(2):
        backward(model, step)
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)) * 1e-3  # of full rank
        gradient = p.grad.double()
        guarded_step(optimizer, torch.tensor(1.0))
        optimizer.zero_grad()
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = polar(0.05 * gradient + 0.95 * momentum)
        before = expected
        expected = before * (1 - 1e-2 * 0.1) - 1e-2 * 0.2 * math.sqrt(47) * direction
        assert (p.detach() - expected).norm() < 0.16 * (expected - before).norm()  # five steps come that near to one
    torch.testing.assert_close(optimizer.state[p]["momentum_buffer"].double(), momentum, rtol=1e-5, atol=1e-9)


def test_the_way_is_that_of_torchs_muon() -> None:
    """torch's coefficients leave singular values between 0.7 and 1.2: the same direction, not the same numbers."""
    model = fresh()
    peer = copy.deepcopy(model)
    matrices = [p for name, p in peer.named_parameters() if ".layers." in name and p.dim() == 2]
    theirs = torch.optim.Muon(matrices, lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    optimizer = make_optimizer(model, SETTINGS)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p, q in zip(model.parameters(), peer.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator) * 1e-3
            q.grad = p.grad.clone()
        guarded_step(optimizer, torch.tensor(1.0))
        theirs.step()
    for (name, ours), other in zip(model.named_parameters(), peer.parameters(), strict=True):
        if ".layers." in name and ours.dim() == 2:
            way, peers_way = ours.detach() - start[name], other.detach() - start[name]
            assert torch.cosine_similarity(way.flatten(), peers_way.flatten(), 0) > 0.97, name
            assert 0.8 < way.norm() / peers_way.norm() < 1.35, name


def test_everything_else_is_adamws() -> None:
    model = fresh()
    twin = copy.deepcopy(model)
    ours, adamw = make_optimizer(model, SETTINGS), make_optimizer(twin, Pretrain(peak_lr=1e-2, weight_decay=0.1))
    for each, optimizer in ((model, ours), (twin, adamw)):
        backward(each, 0)
        guarded_step(optimizer, torch.tensor(1.0))
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        matrix = ".layers." in name and p.dim() == 2
        assert torch.equal(p, q) == (not matrix), name
        assert set(ours.state[p]) == ({"momentum_buffer"} if matrix else {"step", "exp_avg", "exp_avg_sq"})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    model = fresh()
    optimizer = make_optimizer(model, SETTINGS)
    advance(model, optimizer, 0)
    before = copy.deepcopy((model.state_dict(), [optimizer.state[p] for p in model.parameters()]))
    backward(model, 1)
    gradient = model.model.layers[0].mlp.up_proj.weight.grad  # type: ignore[union-attr]
    gradient[3, 4] = bad  # type: ignore[index]
    guarded_step(optimizer, clip_grad_norm(model.parameters(), 1.0))
    optimizer.zero_grad()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[0][name]), name
    for p, state in zip(model.parameters(), before[1], strict=True):
        assert all(torch.equal(optimizer.state[p][key], value) for key, value in state.items())
    advance(model, optimizer, 1)  # and the next good one counts again
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before[0]["model.layers.0.mlp.up_proj.weight"])


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    model, other = fresh(0), fresh(1)
    optimizer, other_optimizer = make_optimizer(model, SETTINGS), make_optimizer(other, SETTINGS)
    for step in range(2):
        advance(model, optimizer, step)
    save_checkpoint(tmp_path, 2, model, optimizer, {}, keep=1)
    load_checkpoint(tmp_path / "step-000000002", other, other_optimizer)
    for step in range(2, 5):
        for each, its in ((model, optimizer), (other, other_optimizer)):
            set_learning_rate(its, 1e-2 / step)
            advance(each, its, step)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def matrices(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(rows)).bfloat16()


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for rows, columns in SIZES:
        x_nRC = matrices(rows, columns)
        found[f"replicated {rows}"] = orthogonalized(x_nRC, x_nRC)
        like = distribute_tensor(x_nRC[0], mesh, [Shard(0)])
        parts = [distribute_tensor(x, mesh, [Shard(0)]) for x in x_nRC]
        out_nrC = orthogonalized(torch.stack([part.to_local() for part in parts]), like)
        whole = [DTensor.from_local(x, mesh, [Shard(0)], shape=like.shape, stride=like.stride()) for x in out_nrC]
        found[f"sharded {rows}"] = torch.stack([x.full_tensor() for x in whole])
    for sharded in (False, True):
        model = fresh()
        if sharded:
            for block in model.model.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
        found |= {f"{sharded} {name}": p for name, p in three_steps(model).items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def three_steps(model: Transformer) -> dict[str, torch.Tensor]:
    """The same batch on every rank, so that the mean of the gradients is that of one."""
    optimizer = make_optimizer(model, SETTINGS)
    for step in range(3):
        backward(model, step)
        guarded_step(optimizer, torch.tensor(1.0))
        optimizer.zero_grad()
    return {n: p.full_tensor() if isinstance(p, DTensor) else p.detach() for n, p in model.named_parameters()}


SIZES = [(30, 30), (6, 30), (47, 30), (2, 9)]  # shapes that 3 ranks do not divide; (2, 9): a rank without a row


def test_ranks_share_the_work_and_agree(tmp_path: Path) -> None:
    """Two matrices and three ranks: weights as DDP has them (all on every rank) and as FSDP2 has them (rows)."""
    mp.spawn(_rank, (3, free_port(), str(tmp_path)), nprocs=3)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    for name in states[0]:
        assert all(torch.equal(state[name], states[0][name]) for state in states), name
    for rows, columns in SIZES:
        alone = orthogonalize(matrices(rows, columns))
        for kind in ("replicated", "sharded"):
            torch.testing.assert_close(states[0][f"{kind} {rows}"], alone, rtol=0, atol=0.02)
    start = dict(fresh().named_parameters())
    for name, p in three_steps(fresh()).items():
        for sharded in (False, True):
            way, alone = states[0][f"{sharded} {name}"] - start[name], p - start[name]
            # directions that have next to no gradient turn with its last bits
            assert torch.cosine_similarity(way.flatten(), alone.flatten(), 0) > 0.98, (name, sharded)

"""The model against independent implementations: transformers' Llama, the published modelling code, plain PyTorch."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from xmodel.model.config import from_hf, to_hf
from xmodel.model.transformer import KVCache, Transformer, compile_model
from xmodel.recipe.settings import Model

GOLDEN = Path(__file__).parents[2] / ".." / "shared" / "golden" / "official-model"
SHAPES = {
    "grouped": Model(layers=3, heads=8, kv_heads=2, hidden=64, ffn=96, vocab_size=131, context_length=48),
    "multi-head": Model(
        layers=2, heads=4, kv_heads=4, hidden=48, ffn=80, vocab_size=97, context_length=64, norm_eps=1e-6
    ),
    "multi-query, tied": Model(
        layers=2, heads=6, kv_heads=1, hidden=96, ffn=64, vocab_size=101, context_length=40, tied_embeddings=True
    ),
    "qk-norm": Model(layers=2, heads=6, kv_heads=2, hidden=48, ffn=80, vocab_size=97, context_length=40, qk_norm=True),
    "long table, rope base": Model(
        layers=2,
        heads=2,
        kv_heads=1,
        hidden=64,
        ffn=64,
        vocab_size=64,
        context_length=32,
        position_table=512,
        rope_base=5e5,
    ),
}


def make(shape: Model, seed: int = 0, scale: float = 4.0) -> Transformer:
    """A model with weights larger than at the start of training, so that attention is far from uniform."""
    model = Transformer(shape)
    model.init_weights(seed)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
            else:
                parameter.mul_(scale)
    return model


def some_tokens(shape: Model, batch: int, length: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(shape.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    """Largest difference, as a share of the largest value."""
    assert a is not None
    assert b is not None
    return ((a - b).abs().max() / b.abs().max()).item()


def cosine(a: torch.Tensor | None, b: torch.Tensor | None) -> float:
    assert a is not None
    assert b is not None
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients_equal_transformers(name: str) -> None:
    shape = SHAPES[name]
    model = make(shape)
    classes = (Qwen3ForCausalLM, Qwen3Config) if shape.qk_norm else (LlamaForCausalLM, LlamaConfig)
    peer = classes[0](classes[1](**to_hf(shape)))
    peer.load_state_dict(model.state_dict(), strict=not shape.tied_embeddings)
    tokens = some_tokens(shape, 3, shape.context_length)
    assert relative(model(tokens), peer(tokens).logits) <= 1e-5
    model.loss(tokens[:, :-1], tokens[:, 1:]).div(tokens[:, 1:].numel()).backward()
    peer(tokens, labels=tokens).loss.backward()
    theirs = dict(peer.named_parameters())
    for parameter, p in model.named_parameters():
        assert relative(p.grad, theirs[parameter].grad) <= 2e-5, parameter


@pytest.mark.parametrize("name", ["a", "b"])
def test_logits_equal_the_published_modelling_code(name: str) -> None:
    folder = GOLDEN / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    shape = from_hf(json.loads((folder / "config.json").read_text()))
    state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    model = Transformer(shape)
    model.load_state_dict({key: value for key, value in state.items() if not key.endswith("inv_freq")})
    expected = load_file(folder / "expected.safetensors")
    assert relative(model(expected["input_ids"]), expected["logits"]) <= 1e-5


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_any_chunking_through_the_cache_gives_the_full_forward(name: str, data: st.DataObject) -> None:
    shape = SHAPES[name]
    length = data.draw(st.integers(2, 30), label="length")
    batch = data.draw(st.integers(1, 3), label="batch")
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1)), label="cuts"))
    model, tokens = make(shape), some_tokens(shape, batch, length)
    full = model(tokens)
    cache = KVCache(shape, batch, length, torch.float32, "cpu")
    bounds = [0, *cuts, length]
    parts = [model(tokens[:, a:b], cache) for a, b in itertools.pairwise(bounds)]
    assert cache.length == length
    assert relative(torch.cat(parts, dim=1), full) <= 1e-5
    if cuts:  # a prefix that is already computed can be gone back to
        cache.length = cuts[0]
        again = model(tokens[:, cuts[0] :], cache, last_only=True)
        assert again.shape == (batch, 1, shape.vocab_size)
        assert relative(again[:, 0], full[:, -1]) <= 1e-5


def test_too_many_tokens_are_refused() -> None:
    shape = SHAPES["grouped"]
    model = make(shape)
    with pytest.raises(ValueError, match="49 tokens are more than the 48"):
        model(some_tokens(shape, 1, 49))
    cache = KVCache(shape, 1, 8, torch.float32, "cpu")
    model(some_tokens(shape, 1, 6), cache)
    with pytest.raises(ValueError, match=r"6 \+ 3 tokens are more than the 8"):
        model(some_tokens(shape, 1, 3), cache)


def test_initial_weights_follow_from_the_seed_and_nothing_else() -> None:
    shape = Model(layers=2, heads=4, kv_heads=2, hidden=128, ffn=256, vocab_size=512, context_length=16, init_std=0.03)
    first, second, other = Transformer(shape), Transformer(shape), Transformer(shape)
    assert all(p.isnan().all() for p in first.parameters())
    first.init_weights(7)
    torch.manual_seed(123)
    second.init_weights(7)
    other.init_weights(8)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.dim() == 1:
            assert (a == 1).all()
        else:
            assert not torch.equal(a, c)
            assert abs(a.std().item() - 0.03) < 0.002, name
            assert abs(a.mean().item()) < 0.002, name


def test_training_steps_repeat_bit_for_bit() -> None:
    shape = SHAPES["grouped"]

    def losses() -> list[float]:
        model = make(shape)
        model.compute_dtype = torch.bfloat16
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        out = []
        for step in range(4):
            tokens = some_tokens(shape, 4, 33, seed=step)
            loss = model.loss(tokens[:, :-1], tokens[:, 1:])
            out.append(loss.item())
            (loss / 128).backward()
            optimizer.step()
            optimizer.zero_grad()
        return out

    assert losses() == losses()


def test_accumulated_micro_batches_give_the_gradient_of_the_batch() -> None:
    shape = SHAPES["multi-query, tied"]
    tokens = some_tokens(shape, 6, 33)
    whole, parts = make(shape), make(shape)
    whole.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    for rows in tokens.chunk(3):
        parts.loss(rows[:, :-1], rows[:, 1:]).backward()
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert relative(b.grad, a.grad) <= 1e-5


def test_bfloat16_stays_near_float32_and_keeps_float32_gradients() -> None:
    shape = Model(layers=2, heads=8, kv_heads=2, hidden=128, ffn=192, vocab_size=512, context_length=160)
    exact, rounded = make(shape), make(shape)
    rounded.compute_dtype = torch.bfloat16
    tokens = some_tokens(shape, 2, 161)
    losses = []
    for model in (exact, rounded):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:]) / tokens[:, 1:].numel()
        loss.backward()
        losses.append(loss)
    assert losses[0].dtype == losses[1].dtype == torch.float32
    assert abs(losses[1] / losses[0] - 1) < 2e-3
    for (name, a), b in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert b.grad is not None
        assert b.grad.dtype == torch.float32
        assert cosine(a.grad, b.grad) > 0.995, name


def test_compiled_model_computes_the_same() -> None:
    """One compilation serves every layer, and evaluation, whatever its shapes, makes no other."""
    torch._dynamo.reset()  # what other tests compiled would make this one a recompilation
    shape = SHAPES["grouped"]
    eager, compiled = make(shape), make(shape)
    compile_model(compiled)
    tokens = some_tokens(shape, 2, 33)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for model in (eager, compiled):
            model.compute_dtype = torch.bfloat16
            for _ in range(2):
                model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        with torch.no_grad():
            assert torch.equal(eager(tokens[:1, :7]), compiled(tokens[:1, :7]))
    assert compiled.state_dict().keys() == eager.state_dict().keys()
    for (name, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        assert cosine(a.grad, b.grad) > 0.999, name


def test_a_cast_of_the_whole_model_spares_the_angles() -> None:
    """bfloat16 has 8 bits: cosines of neighbouring positions far into a text would be the same number."""
    model = make(SHAPES["grouped"])
    tokens_BT = torch.arange(48)[None]
    exact = model(tokens_BT)
    angles = model.rotary.clone()
    for cast in (model.bfloat16, model.half, model.double, lambda: model.to("cpu", torch.bfloat16), model.float):
        cast()
        assert torch.equal(model.rotary, angles)
        assert model.rotary.dtype == torch.float32
    assert (model(tokens_BT) - exact).abs().max() < 0.1 * exact.abs().max()  # the weights' own rounding

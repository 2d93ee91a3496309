"""What a training step may be asked to do differently: attention kernels, activation checkpointing, float8."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from xmodel.errors import UserError
from xmodel.model import attention
from xmodel.model.attention import causal_attention, choose_attention
from xmodel.model.fp8 import E4M3, E5M2, check_fp8, fp8_linear, quantize
from xmodel.model.memory import How, saved_at_the_end, saved_per_token, weight_copies
from xmodel.model.transformer import Transformer, compile_model
from xmodel.recipe.settings import Model

CPU = torch.device("cpu")
SHAPE = Model(layers=3, heads=8, kv_heads=2, hidden=128, ffn=352, vocab_size=320, context_length=128)


@pytest.fixture
def quick_compile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile up to, but without, its code generation, which takes ten seconds for each way to run a block."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager_decomp_partition"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def make(shape: Model = SHAPE, **options: Any) -> Transformer:
    model = Transformer(shape)
    model.init_weights(0)
    model.compute_dtype = torch.bfloat16
    for name, value in options.items():
        assert hasattr(model, name)
        setattr(model, name, value)
    return model


def tokens_of(shape: Model, batch: int = 4) -> torch.Tensor:
    return torch.randint(
        shape.vocab_size, (batch, shape.context_length + 1), generator=torch.Generator().manual_seed(3)
    )


def loss_and_gradients(model: Transformer, tokens_BT: torch.Tensor) -> list[torch.Tensor]:
    loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]) / tokens_BT[:, 1:].numel()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    return [loss.detach(), *gradients]


class Operators(TorchDispatchMode):
    """Counts calls of operators, and notes the storages that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] = self.calls.get(func.name(), 0) + 1
        return tree_map_only(torch.Tensor, self.note, func(*args, **(kwargs or {})))

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return tensor


def kept_bytes(model: Transformer, tokens_BT: torch.Tensor) -> int:
    """Bytes that live from the forward to the backward pass, parameters apart."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    with Operators() as operators:
        hidden_BTD = model.hidden(tokens_BT)
    kept = sum(n for key, (storage, n) in operators.made.items() if key not in own and not storage.expired())
    del hidden_BTD
    return kept


# ---- activation checkpointing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_checkpointing_changes_no_bit(dtype: torch.dtype) -> None:
    tokens_BT = tokens_of(SHAPE)
    plain, selective, full = (
        loss_and_gradients(make(compute_dtype=dtype, checkpointing=mode), tokens_BT)
        for mode in ("none", "selective", "full")
    )
    for expected, *others in zip(plain, selective, full, strict=True):
        assert all(torch.equal(other, expected) for other in others)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_of_the_compiled_block_gives_the_same(mode: str) -> None:
    tokens_BT = tokens_of(SHAPE)
    expected = loss_and_gradients(make(), tokens_BT)
    model = make(checkpointing=mode)
    compile_model(model)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = loss_and_gradients(model, tokens_BT)
    assert torch.isclose(found[0], expected[0], rtol=1e-3)
    for own, other in zip(found[1:], expected[1:], strict=True):
        assert F.cosine_similarity(own.flatten(), other.flatten(), dim=0) > 0.999


def test_checkpointing_keeps_less_and_selective_repeats_no_matrix_product() -> None:
    tokens_BT = tokens_of(SHAPE)
    kept = {mode: kept_bytes(make(checkpointing=mode), tokens_BT[:, :-1]) for mode in ("none", "selective", "full")}
    assert kept["full"] < 0.25 * kept["none"]
    assert kept["full"] < kept["selective"] < 0.6 * kept["none"]
    products = {}
    for mode in ("none", "selective", "full"):
        model = make(checkpointing=mode)
        with Operators() as counted:
            loss_and_gradients(model, tokens_BT)
        products[mode] = counted.calls["aten::mm"], counted.calls["xmodel::blocked_attention"]
    assert products["selective"] == products["none"]
    assert products["full"] == (products["none"][0] + 3 * SHAPE.layers, 2 * SHAPE.layers)  # not the last


@pytest.mark.parametrize("hidden", [64, 256])
def test_the_estimate_of_activations_is_what_autograd_keeps(hidden: int) -> None:
    """The formula that the micro-batch finder and the planner go by, against a count of the tensors that live."""
    shape = dataclasses.replace(SHAPE, hidden=hidden, ffn=11 * hidden // 4)
    tokens_BT = tokens_of(shape, 6)
    for mode in ("none", "selective", "full"):
        how = How("bf16", compiled=False, checkpointing=mode)  # type: ignore[arg-type]
        each = saved_per_token(shape, how, fused_attention=False) * shape.layers + saved_at_the_end(shape, how)[0]
        planned = each * tokens_BT[:, 1:].numel() + (weight_copies(shape, how) * shape.layers if mode == "none" else 0)
        kept = kept_bytes(make(shape, checkpointing=mode), tokens_BT[:, :-1])
        assert planned == pytest.approx(kept, rel=0.05), mode


# ---- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("kernel", ["flash", "math"])
def test_every_kernel_is_attention_and_compiles_without_a_break(kernel: str) -> None:
    q, k, v = (torch.randn(2, heads, 80, 16, requires_grad=True) for heads in (6, 2, 2))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(causal_attention(q, k, v, kernel=kernel), expected)
    compiled = torch.compile(causal_attention, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(q, k, v, kernel=kernel), expected)


def test_the_kernel_is_what_runs_and_only_in_training() -> None:
    model, tokens_BT = make(attention="math"), tokens_of(SHAPE)
    with Operators() as counted:
        loss_and_gradients(model, tokens_BT)
    assert "xmodel::blocked_attention" not in counted.calls
    with Operators() as counted, torch.no_grad():
        model.eval()(tokens_BT[:, :-1])
    assert counted.calls["xmodel::blocked_attention"] == SHAPE.layers


def test_the_kernel_is_chosen_by_device_and_dtype() -> None:
    assert choose_attention("auto", 8, 2, 32, torch.bfloat16, CPU) == "blocked"
    assert choose_attention("auto", 8, 2, 32, torch.float32, CPU) == "flash"
    assert choose_attention("math", 8, 2, 32, torch.bfloat16, CPU) == "math"


@pytest.mark.parametrize(
    ("capability", "unable", "expected"),
    [((9, 0), "", "cudnn"), ((10, 0), "", "cudnn"), ((8, 0), "", "flash"), ((9, 0), "cudnn", "flash"),
     ((8, 0), "flash cudnn", "math")],
)  # fmt: skip
def test_the_order_of_kernels_on_gpus(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], unable: str, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "_fault", lambda kernel, *shape: "no" if kernel in unable.split() else None)
    assert choose_attention("auto", 32, 4, 64, torch.bfloat16, torch.device("cuda", 0)) == expected


def test_a_kernel_that_cannot_is_refused_before_the_run() -> None:
    with pytest.raises(UserError, match=r"pretrain\.attention: cudnn cannot do 8/2 heads of 32 in bfloat16 on cpu"):
        choose_attention("cudnn", 8, 2, 32, torch.bfloat16, CPU)
    if "flash_attn_interface" not in sys.modules:
        with pytest.raises(UserError, match=r"fa3 needs FlashAttention 3 .*flash_attn_interface"):
            choose_attention("fa3", 8, 2, 32, torch.bfloat16, CPU)


@pytest.mark.parametrize("older", [False, True])
def test_flash_attention_3_gets_its_layout(monkeypatch: pytest.MonkeyPatch, older: bool) -> None:
    """A stand-in with the interface of the real module: [B, T, H, C] in and out; older releases return a pair."""

    def flash_attn_func(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> Any:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True).transpose(1, 2)
        return (out, None) if older else out

    module = types.ModuleType("flash_attn_interface")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    module.__spec__ = types.SimpleNamespace(name="flash_attn_interface")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    assert choose_attention("fa3", 8, 2, 16, torch.bfloat16, CPU) == "fa3"
    tokens_BT = tokens_of(SHAPE)
    expected = loss_and_gradients(make(attention="flash"), tokens_BT)
    model = make(attention="fa3")
    assert all(map(torch.equal, loss_and_gradients(model, tokens_BT), expected))


# ---- float8 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "step"), [(E4M3, 2**-4), (E5M2, 2**-3)])
def test_rounding_to_float8_is_within_half_a_step_of_the_mantissa(dtype: torch.dtype, step: float) -> None:
    x = torch.randn(64, 80) * 1e-5
    rounded, scale = quantize(x, dtype)
    back = rounded.float() * scale
    top = x.abs() > x.abs().max() / 64  # above the format's subnormal numbers
    assert (((back - x) / x).abs()[top] <= step * 1.001).all()
    assert back.abs().max() == pytest.approx(x.abs().max().item())
    assert not quantize(torch.zeros(4, 4), dtype)[0].float().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_fault_is_not_rounded_away(bad: float) -> None:
    x = torch.randn(32, 32)
    x[3, 4] = bad
    assert quantize(x, E4M3)[1].isnan()


def test_float8_products_err_as_their_rounding_does() -> None:
    """Against float64: rounding two factors gives 3.6 % in the forward pass, e5m2 gradients 5-6 % in the backward."""
    x, weight, grad = torch.randn(256, 128).bfloat16(), torch.randn(96, 128) * 0.02, torch.randn(256, 96).bfloat16()
    x.requires_grad_()
    weight.requires_grad_()
    out = fp8_linear(x, weight)
    out.backward(grad)
    x64, weight64, grad64 = x.detach().double(), weight.detach().double(), grad.double()
    assert x.grad is not None
    assert weight.grad is not None
    assert (out.dtype, x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    for own, exact, expected in (
        (out, x64 @ weight64.T, 0.036),
        (x.grad, grad64 @ weight64, 0.057),
        (weight.grad, grad64.T @ x64, 0.057),
    ):
        error = ((own.double() - exact).norm() / exact.norm()).item()
        assert 0.7 * expected < error < 1.2 * expected


@pytest.mark.usefixtures("quick_compile")
def test_a_model_learns_in_float8_as_in_bfloat16() -> None:
    """PyTorch's CPU kernel lets the numerics be tested where `check_fp8` would refuse to train. Compiled, too."""
    losses = {}
    for fp8 in (False, True):
        model = make(fp8=fp8)
        compile_model(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        tokens_BT = tokens_of(SHAPE) % 16
        for _ in range(12):
            losses[fp8] = loss_and_gradients(model, tokens_BT)[0].item()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():  # evaluation does not round
            plain = make()
            plain.load_state_dict(model.state_dict())
            assert torch.equal(model.eval()(tokens_BT[:, :-1]), plain.eval()(tokens_BT[:, :-1]))
    assert losses[False] < 4
    assert losses[True] == pytest.approx(losses[False], rel=0.03)
    assert losses[True] != losses[False]


def test_float8_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"pretrain\.precision: fp8 needs a GPU of compute capability 8\.9"):
        check_fp8(SHAPE, 512, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_fp8(SHAPE, 512, torch.device("cuda"))
    with pytest.raises(UserError, match=r"multiples of 16, but model\.ffn is 350"):
        check_fp8(dataclasses.replace(SHAPE, ffn=350), 512, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an A100")
    with pytest.raises(UserError, match=r"not an A100"):
        check_fp8(SHAPE, 512, torch.device("cuda"))

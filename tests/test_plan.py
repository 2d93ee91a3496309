"""The planner: its arithmetic beside independent counts, its memory model beside what autograd keeps, its advice."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from command import TINY
from hypothesis import given
from hypothesis import strategies as st

from xmodel import cli as command_line
from xmodel.errors import UserError
from xmodel.hardware import GPUS, named, of_device
from xmodel.model import loss, memory
from xmodel.model.counts import parameters
from xmodel.model.memory import How
from xmodel.model.transformer import Transformer, compile_model
from xmodel.plan.estimate import as_preset, data, make_setup, over_gpus, over_sizes, parts, plan
from xmodel.plan.memory import LOGITS_CHUNK, by_part, largest_micro_batch
from xmodel.plan.published import check
from xmodel.pretrain import measure as measuring
from xmodel.recipe.load import load_recipe
from xmodel.recipe.presets import PRESETS
from xmodel.recipe.settings import Model, Recipe

REFERENCE = Path(__file__).parents[1] / "recipes" / "xmodel-lm-1.1b.yaml"
SHAPE = Model(layers=3, heads=4, kv_heads=2, hidden=64, ffn=192, context_length=128, position_table=128, vocab_size=512)


@pytest.fixture(scope="module")
def reference() -> Recipe:
    return load_recipe(REFERENCE)


def kept_for_backward(shape: Model, dtype: torch.dtype, compiled: bool, batch: int = 4) -> int:
    """Bytes of the storages that autograd holds between forward and backward, the model's own left out."""
    model = Transformer(shape)
    model.init_weights(0)
    model.compute_dtype = dtype
    tokens = torch.zeros(batch, shape.context_length, dtype=torch.int64)
    if compiled:
        compile_model(model)
        model(tokens, targets_BT=tokens).backward()
        model.zero_grad()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), tokens)}
    held: dict[int, torch.Tensor] = {}  # keeps them alive, or an address could come twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens, targets_BT=tokens)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize(
    ("precision", "compiled"), [("bf16", False), ("fp32", False), ("bf16", True)], ids=["bf16", "fp32", "compiled"]
)
def test_the_memory_model_agrees_with_what_autograd_keeps(precision: str, compiled: bool) -> None:
    how, batch = How(precision, compiled), 4
    fused = precision == "fp32"  # in bfloat16 a CPU uses our own attention, which keeps no log-sum-exps
    per_token, once = memory.saved_at_the_end(SHAPE, how)
    each = memory.saved_per_token(SHAPE, how, fused_attention=fused) * SHAPE.layers + per_token
    planned = each * batch * SHAPE.context_length + once + memory.weight_copies(SHAPE, how) * SHAPE.layers
    kept = kept_for_backward(SHAPE, {"bf16": torch.bfloat16, "fp32": torch.float32}[precision], compiled, batch)
    assert planned == pytest.approx(kept, rel=0.1)


def test_the_plan_and_the_loss_cut_logits_into_the_same_chunks() -> None:
    for vocab in (512, 32_000, 65_536):
        rows = max(64, LOGITS_CHUNK // (4 * vocab) // 64 * 64)
        assert loss._rows_per_chunk(vocab, torch.device("cuda")) == rows


def test_parts_sum_to_the_real_model() -> None:
    for shape in (SHAPE, replace(SHAPE, tied_embeddings=True)):
        counted = sum(parameter.numel() for parameter in Transformer(shape).parameters())
        assert sum(parts(shape).values()) == parameters(shape)["total"] == counted


def test_the_reference_run(reference: Recipe) -> None:
    made = plan(reference, make_setup(reference, named("H800"), 7, mfu=(0.55, "given")))
    assert made["parameters"]["total"] == 1_188_136_960
    assert made["tokens_per_step"] == 3_440_640
    assert made["tokens"] == 2_064_384_000_000
    assert made["flops_per_token"] == {"palm": 9_150_922_752, "causal": 7_942_963_200}
    assert made["tokens_per_second"] == pytest.approx(7 * 0.55 * 989e12 / 9_150_922_752)
    assert made["seconds"] / 86_400 == pytest.approx(57.4, abs=0.1)  # the paper: two months
    assert made["mfu_causal"] == pytest.approx(0.55 * 7_942_963_200 / 9_150_922_752)
    assert made["kwh"] == pytest.approx(made["gpu_hours"] * 0.7 * 0.85)
    assert made["micro_batch"]["share"] == 120
    assert 120 % made["micro_batch"]["largest"] == 0
    assert made["micro_batch"]["largest"] >= 4  # what was trained with
    assert made["cost"] is None
    assert made["data"]["epochs"]["redpajama-wikipedia"] == pytest.approx(0.052 * 2.064384e12 / 34_312_919_854)


def test_a_given_speed_gives_the_days(reference: Recipe) -> None:
    wanted = 57_000.0
    mfu = wanted * 9_150_922_752 / 989e12
    made = plan(reference, make_setup(reference, named("H200"), 7, mfu=(mfu, "given"), price=2.0))
    assert made["tokens_per_second_per_gpu"] == pytest.approx(wanted)
    assert made["seconds"] == pytest.approx(2_064_384_000_000 / (7 * wanted))
    assert made["cost"] == pytest.approx(2 * made["gpu_hours"])


def test_published_figures_come_out_close() -> None:
    off = {(row["name"], row["figure"]): row["off"] for row in check()}
    assert abs(off["TinyLlama 1.1B", "mfu"]) < 0.02
    assert abs(off["MosaicML MPT 1.3B", "mfu"]) < 0.02
    assert all(abs(value) < 0.08 for (_, figure), value in off.items() if figure == "mfu")
    assert all(abs(value) < 0.25 for (_, figure), value in off.items() if figure == "forecast")
    assert all(abs(off["Xmodel-LM 1.1B", figure]) < 2e-4 for figure in ("parameters", "tokens_per_step", "tokens"))


@given(
    preset=st.sampled_from(sorted(PRESETS)),
    micro=st.integers(1, 16),
    precision=st.sampled_from(["bf16", "fp32"]),
    compiled=st.booleans(),
    parallel=st.sampled_from(["ddp", "zero2", "fsdp"]),
    gpus=st.sampled_from([1, 2, 8]),
)
def test_memory_grows_with_the_batch_and_shrinks_with_every_way_to_save_it(
    preset: str, micro: int, precision: str, compiled: bool, parallel: str, gpus: int
) -> None:
    model = as_preset(replace(SHAPE, context_length=1024, position_table=1024), preset)
    how = How(precision, compiled, "none", parallel, gpus)

    def total(micro: int, how: How) -> float:
        found = by_part(model, micro, how)
        assert all(size > 0 for size in found.values())
        return sum(found.values())

    assert total(micro + 1, how) >= total(micro, how)
    levels = [total(micro, how._replace(checkpointing=level)) for level in ("none", "selective", "full")]
    assert levels == sorted(levels, reverse=True)
    if gpus == 8 and parallel == "fsdp":
        assert total(micro, how._replace(parallel="zero2")) >= total(micro, how)
    largest = largest_micro_batch(model, 48, 80e9, how)
    assert largest == 0 or (48 % largest == 0 and total(largest, how) <= 80e9)
    for larger in (size for size in range(largest + 1, 49) if 48 % size == 0):
        assert total(larger, how) > 80e9


def test_mistakes_say_what_would_be_right(reference: Recipe) -> None:
    with pytest.raises(UserError, match="did you mean H800"):
        named("H880")
    with pytest.raises(UserError, match=r"which one\? A100 40GB or A100 80GB"):
        named("A100")
    with pytest.raises(UserError, match=r"--gpus 11: does not divide .*840.*; 8, 10, 12 would"):
        plan(reference, make_setup(reference, named("H100"), 11))
    with pytest.raises(UserError, match=r"24\. What would: .*fsdp.*; --gpu '.*'; model\.preset=large"):
        plan(reference, make_setup(reference, named("4090"), 7))
    with pytest.raises(UserError, match="A100 80GB has no fp8"):
        make_setup(reference, named("A100 80GB"), 1, precision="fp8")
    with pytest.raises(UserError, match="fp32 has no peak"):
        make_setup(reference, named("H100"), 1, precision="fp32")


def test_what_is_advised_does_fit(reference: Recipe) -> None:
    setup = make_setup(reference, named("4090"), 2, parallel="fsdp", checkpointing="full")
    assert plan(reference, setup)["micro_batch"]["largest"] >= 1
    shaped = replace(reference, model=as_preset(reference.model, "large"))
    assert plan(shaped, make_setup(shaped, named("4090"), 1))["micro_batch"]["largest"] >= 1


def test_names_of_devices_and_of_people() -> None:
    drivers = {
        "NVIDIA H100 80GB HBM3": "H100",
        "NVIDIA H100 PCIe": "H100 PCIe",
        "NVIDIA H100 NVL": "H100 NVL",
        "NVIDIA H800": "H800",
        "NVIDIA H200": "H200",
        "NVIDIA A100-SXM4-40GB": "A100 40GB",
        "NVIDIA A100 80GB PCIe": "A100 80GB",
        "NVIDIA A10": "A10",
        "NVIDIA L4": "L4",
        "NVIDIA L40S": "L40S",
        "NVIDIA GeForce RTX 4090": "RTX 4090",
    }
    for driver, name in drivers.items():
        gpu = of_device(driver)
        assert gpu is not None
        assert gpu.name == name
    assert of_device("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert of_device("Tesla T4") is None
    for gpu in GPUS:
        assert named(gpu.name) == named(gpu.name.lower().replace(" ", "-")) == gpu
    assert named("a100-80g").name == "A100 80GB"
    assert named("4090").name == "RTX 4090"


def test_what_if_tables_have_a_row_for_everything(reference: Recipe) -> None:
    rows = over_gpus(reference, lambda gpu: make_setup(reference, gpu, 8))
    assert [row["name"] for row in rows] == [gpu.name for gpu in GPUS]
    assert {row["name"] for row in rows if "plan" not in row} >= {"L4", "RTX 4090"}
    sizes = over_sizes(reference, make_setup(reference, named("H200"), 8))
    fitting = [row["plan"] for row in sizes if "plan" in row]
    assert [row["name"] for row in sizes] == list(PRESETS)
    assert fitting[6]["parameters"]["total"] == 1_188_136_960
    days = [made["seconds"] for made in fitting]
    assert days == sorted(days)


def test_epochs_only_where_sizes_are_stated(reference: Recipe) -> None:
    bare = replace(reference.corpus, sources=[replace(source, tokens=None) for source in reference.corpus.sources])
    assert data(replace(reference, corpus=bare), 10**9) == {"sources": 18, "sized": 0, "available": 0, "epochs": {}}


@pytest.mark.parametrize(
    "arguments",
    [
        [REFERENCE, "--gpus", "7", "--gpu", "H800", "--price", "2"],
        [REFERENCE, "--gpus", "8", "--what-if", "gpus"],
        [REFERENCE, "--gpus", "8", "--what-if", "sizes", "--gpu", "H200", "--price", "1"],
        ["--check"],
    ],
    ids=["plan", "gpus", "sizes", "check"],
)
def test_the_command_in_both_forms(arguments: list[object]) -> None:
    written = [str(argument) for argument in arguments]
    text = CliRunner().invoke(command_line.cli, ["plan", *written], catch_exceptions=False).output
    assert "1.19B" in text or "1,188,136,960" in text
    assert all(len(line) < 150 for line in text.splitlines())
    json.loads(CliRunner().invoke(command_line.cli, ["plan", *written, "--json"], catch_exceptions=False).output)


def test_measuring_times_real_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "peak_flops", lambda device, dtype: (1e11, "made up"))
    (tmp_path / "tiny.yaml").write_text(TINY)
    recipe = load_recipe(tmp_path / "tiny.yaml")
    started = time.perf_counter()
    found = measuring.measure(recipe, seconds=0.4)
    assert time.perf_counter() - started < 10
    assert found["same_shape"]
    assert found["micro_batch"] == 2
    step = found["pass_seconds"] * 2 + found["update_seconds"]  # a batch of 4 in micro-batches of 2
    assert found["tokens_per_second"] == pytest.approx(4 * 64 / step)
    made = plan(recipe, make_setup(recipe, found["gpu"], 1, mfu=(found["mfu_palm"], "measured")))
    assert made["tokens_per_second"] == pytest.approx(found["tokens_per_second"], rel=1e-6)
    assert made["kwh"] is None


def test_a_slow_machine_measures_a_smaller_shape_of_the_family(reference: Recipe) -> None:
    shape = measuring.smaller_shape(reference.model, peak=1e11, seconds=20)
    assert shape.preset in PRESETS
    assert parameters(shape)["total"] < parameters(reference.model)["total"]
    assert (shape.vocab_size, shape.context_length) == (32_000, 512)
    assert measuring.smaller_shape(shape, peak=1e15, seconds=20) == shape

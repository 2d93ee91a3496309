"""The plan's arithmetic beside figures that others have published: how far off is it?"""

from __future__ import annotations

from typing import Any, NamedTuple

from xmodel.hardware import named
from xmodel.model.counts import flops_per_token, parameters
from xmodel.plan.estimate import assumed_mfu, by_size
from xmodel.recipe.settings import Model


class Published(NamedTuple):
    """One training as it was published."""

    name: str
    gpu: str
    model: Model  # models with a plain block of width 4·D have a SwiGLU with as many weights here: 8/3·D
    tokens_per_second: float  # on one GPU
    mfu: float
    source: str


def _model(
    layers: int, heads: int, kv_heads: int, hidden: int, ffn: int, length: int, vocab: int, tied: bool = False
) -> Model:
    return Model(
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        hidden=hidden,
        ffn=ffn,
        context_length=length,
        vocab_size=vocab,
        tied_embeddings=tied,
    )


MOSAICML = "github.com/mosaicml/llm-foundry, scripts/train/benchmarking/README.md: 8 GPUs, bf16, sequence 4096"
PUBLISHED = (
    Published(
        "TinyLlama 1.1B",
        "A100 40GB",
        _model(22, 32, 4, 2048, 5632, 2048, 32_000),
        24_000,
        0.56,
        "github.com/jzhang38/TinyLlama, README.md: 16 GPUs, sequence 2048",
    ),
    Published(
        "MosaicML MPT 1.3B",
        "H100",
        _model(24, 16, 16, 2048, 5461, 4096, 50_368, tied=True),
        38_535,
        0.4026,
        MOSAICML,
    ),
    Published(
        "MosaicML MPT 1.3B",
        "A100 40GB",
        _model(24, 16, 16, 2048, 5461, 4096, 50_368, tied=True),
        16_856,
        0.5585,
        MOSAICML,
    ),
    Published(
        "MosaicML MPT 2.7B",
        "H100",
        _model(32, 20, 20, 2560, 6827, 4096, 50_368, tied=True),
        20_964,
        0.4231,
        MOSAICML,
    ),
    Published(
        "nanochat d24",
        "H100",
        _model(24, 12, 12, 1536, 4096, 2048, 32_768),
        100_000,
        0.50,
        "github.com/karpathy/nanochat: about; most of its layers see a window, which its own MFU counts",
    ),
)
REFERENCE = _model(24, 32, 4, 2048, 5632, 4096, 32_000)  # arXiv 2406.02856
STEPS, BATCH = 600_000, 840
STATED = (1_188_136_960, 3_440_640, 2.064e12)  # parameters, tokens a step, tokens


def check() -> list[dict[str, Any]]:
    """Rows of what was published, what this arithmetic gives, and the difference as a share.

    `mfu`: from the published speed and shape by our formula, beside the published MFU. `forecast`: the speed that a
    plan would have promised, with the MFU that it assumes, beside the published speed.
    """
    rows: list[dict[str, Any]] = []
    for published in PUBLISHED:
        gpu = named(published.gpu)
        palm, _ = flops_per_token(published.model, published.model.context_length)
        mfu = published.tokens_per_second * palm / gpu.bf16
        speed = assumed_mfu(gpu)[0] * by_size(parameters(published.model)["total"]) * gpu.bf16 / palm
        about = {"name": published.name, "gpu": gpu.name, "source": published.source}
        rows.append(about | {"figure": "mfu", "published": published.mfu, "ours": mfu})
        rows.append(about | {"figure": "forecast", "published": published.tokens_per_second, "ours": speed})
    per_step = BATCH * REFERENCE.context_length
    ours = (parameters(REFERENCE)["total"], per_step, per_step * STEPS)
    about = {"name": "Xmodel-LM 1.1B", "gpu": "7 x H800", "source": "arXiv 2406.02856 and its configuration"}
    figures = ("parameters", "tokens_per_step", "tokens")
    rows += [
        about | {"figure": figure, "published": stated, "ours": value}
        for figure, stated, value in zip(figures, STATED, ours, strict=True)
    ]
    palm, _ = flops_per_token(REFERENCE, REFERENCE.context_length)
    days = ours[2] / (7 * 0.55 * named("H800").bf16 / palm) / 86_400
    card = {"source": "two months (61 days) at the `about 55 %` of the model card"}
    rows.append(about | card | {"figure": "days", "published": 61.0, "ours": days})
    return [row | {"off": row["ours"] / row["published"] - 1} for row in rows]

"""The reference recipe against the published figures (arXiv 2406.02856), number by number."""

from __future__ import annotations

from pathlib import Path

import pytest

from xmodel.recipe.load import load_recipe
from xmodel.recipe.presets import PRESETS, expand, parameters
from xmodel.recipe.settings import Model, Recipe
from xmodel.recipe.summary import check_summary

RECIPES = Path(__file__).parents[2] / "recipes"

# source, tokens, weight in ten-thousandths, category, language
MIXTURE = [
    ("redpajama-arxiv", 31_336_679_261, 160, "academic", "en"),
    ("redpajama-book", 29_633_248_538, 300, "book", "en"),
    ("redpajama-c4", 192_696_661_887, 1000, "web", "en"),
    ("redpajama-commoncrawl", 1_251_868_330_446, 5600, "web", "en"),
    ("redpajama-github", 59_063_773_003, 150, "code", "en"),
    ("redpajama-stackexchange", 22_728_030_774, 174, "social", "en"),
    ("redpajama-wikipedia", 34_312_919_854, 520, "academic", "en"),
    ("pile-bookcorpus", 562_392_085, 6, "book", "en"),
    ("pile-pubmed", 17_698_877_602, 100, "academic", "en"),
    ("amps", 269_936_326, 3, "math", "en"),
    ("fanfics", 1_803_437_344, 20, "book", "en"),
    ("openwebmath", 7_150_335_312, 80, "math", "en"),
    ("starcoder", 306_812_862_958, 536, "code", "en"),
    ("wanjuan-law", 9_080_387_832, 100, "academic", "zh"),
    ("wanjuan-news", 5_175_531_875, 50, "academic", "zh"),
    ("wanjuan-patent", 4_559_904_057, 50, "academic", "zh"),
    ("wanjuan-webtext", 126_429_462_230, 644, "web", "zh"),
    ("telechat-ptd", 165_879_069_486, 507, "web", "zh"),
]


@pytest.fixture(scope="module")
def published() -> Recipe:
    return load_recipe(RECIPES / "xmodel-lm-1.1b.yaml")


def test_mixture(published: Recipe) -> None:
    sources = published.corpus.sources
    assert [(s.name, s.tokens, round(s.weight * 10_000, 9), s.category, s.language) for s in sources] == MIXTURE
    assert sum(row[2] for row in MIXTURE) == 10_000
    assert sum(s.weight for s in sources if s.language == "zh") == pytest.approx(0.1351)
    assert sum(s.weight for s in sources if s.category == "code") == pytest.approx(0.0686)
    assert all(s.reader == "jsonl" and s.paths == [f"{published.corpus.root}/{s.name}/*.jsonl*"] for s in sources)
    assert [source.name for source in published.corpus.validation] == ["openwebtext"]
    assert published.corpus.holdout == 0
    assert published.tokens.bos is False


def test_tokenizer_and_model(published: Recipe) -> None:
    tokenizer, model = published.tokenizer, published.model
    assert (tokenizer.vocab_size, tokenizer.character_coverage, tokenizer.max_piece_length) == (32_000, 0.9999, 16)
    assert (model.layers, model.hidden, model.ffn, model.heads, model.kv_heads) == (24, 2048, 5632, 32, 4)
    assert (model.context_length, model.position_table, model.vocab_size) == (4096, 32_768, 32_000)
    assert (model.norm_eps, model.rope_base, model.init_std, model.tied_embeddings) == (1e-5, 10_000, 0.02, False)
    assert model.preset == "xl"
    assert parameters(model) == 1_188_136_960
    assert parameters(model) - 2 * 32_000 * 2048 == 1_057_064_960


def test_pretraining(published: Recipe) -> None:
    train = published.pretrain
    assert (train.steps, train.global_batch, train.micro_batch) == (600_000, 840, 4)
    assert train.global_batch * published.model.context_length == 3_440_640
    assert train.steps * 3_440_640 == 2_064_384_000_000
    assert (train.peak_lr, train.final_lr, train.warmup_steps, train.schedule) == (6e-4, 6e-5, 2000, "cosine")
    assert (train.beta1, train.beta2, train.eps, train.weight_decay, train.clip) == (0.9, 0.95, 1e-8, 0.1, 1.0)
    assert (train.precision, train.eval_every) == ("bf16", 2000)


def test_summary(published: Recipe) -> None:
    rows = dict(check_summary(published))
    assert rows["parameters"] == "1,188,136,960 (1,057,064,960 outside the embeddings)"
    assert rows["tokens a step"] == "3,440,640 (840 x 4,096)"
    assert rows["tokens in all"].startswith("2.064T in 600,000 steps")
    assert rows["source redpajama-wikipedia"].endswith("= 107.3B tokens, 3.13 epochs of 34.31B")
    assert rows["languages"] == "English 86.5%, Chinese 13.5%"


@pytest.mark.parametrize(
    ("name", "ffn", "millions"),
    [("nano", 512, 14.5), ("micro", 1024, 33.8), ("tiny", 1536, 56.9), ("small", 2048, 123.5), ("medium", 2816, 336.2),
     ("large", 4096, 693.0), ("xl", 5632, 1188.1), ("3b", 6912, 2334.6), ("7b", 11008, 6738.4), ("13b", 13824, 13015.9),
     ("34b", 22016, 33744.0), ("70b", 22016, 55890.4)],
)  # fmt: skip
def test_size_ladder(name: str, ffn: int, millions: float) -> None:
    model = expand(Model(preset=name), 32_000)  # pyright: ignore[reportArgumentType]
    assert (model.ffn, model.preset) == (ffn, name)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.1)
    assert model.hidden % model.heads == 0
    assert model.heads % model.kv_heads == 0
    assert len(PRESETS) == 12


def test_our_arithmetic_is_the_models() -> None:
    counts = pytest.importorskip("xmodel.model.counts", reason="the model room is not there")
    for name in ("nano", "xl", "70b"):
        for tied in (False, True):
            model = expand(Model(preset=name, tied_embeddings=tied), 32_000)  # pyright: ignore[reportArgumentType]
            assert counts.parameters(model)["total"] == parameters(model)


def test_quickstart_is_small() -> None:
    recipe = load_recipe(RECIPES / "quickstart.yaml")
    assert parameters(recipe.model) < 10_000_000
    assert {source.reader for source in recipe.corpus.sources} == {"sandbox", "stdlib"}

"""Starter recipes for one's own text: what is measured, what is chosen, and that the loader takes the result."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from xmodel.errors import UserError
from xmodel.init import BYTES_PER_TOKEN, Machine, Plan, plan, shares, starter_recipe, write
from xmodel.model.counts import flops_per_token, parameters
from xmodel.recipe.load import load_recipe
from xmodel.recipe.settings import Recipe
from xmodel.survey import Surveyed, survey

LAPTOP = Machine("cpu", 1, 400e9, 16e9, "bf16", "8 CPU cores")
NODE = Machine("cuda", 8, 989e12, 80e9, "bf16", "8 x H100")
SHARED = Path(__file__).parents[1] / "../shared/text"

EN = "The river rises in the northern hills and meets the sea near an old harbour town. "
ZH = "这条河发源于北方的山地，在一座古老的港口城市附近流入大海。"


def jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    data = "".join(
        json.dumps({"id": i, field: text}, ensure_ascii=False) + "\n" for i, text in enumerate(texts)
    ).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def loaded(folder: Path, text: str) -> Recipe:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "mine.yaml")


def budget(recipe: Recipe) -> tuple[float, float, int]:
    """Training tokens, parameters of the matrix products, FLOP."""
    tokens = recipe.pretrain.steps * recipe.pretrain.global_batch * recipe.model.context_length
    return (
        tokens,
        parameters(recipe.model)["matmul"],
        tokens * flops_per_token(recipe.model, recipe.model.context_length)[0],
    )


def sensible(recipe: Recipe, hours: float, machine: Machine, text_bytes: float) -> None:
    tokens, _, flops = budget(recipe)
    assert flops / (machine.peak * machine.count) / 3600 < 0.5 * hours, "the time is enough"
    assert tokens <= 16.2 * text_bytes / BYTES_PER_TOKEN[recipe.tokenizer.vocab_size], "at most sixteen passes"
    assert recipe.pretrain.steps >= 50
    assert recipe.pretrain.global_batch % (recipe.pretrain.micro_batch * machine.count) == 0
    assert 16 * parameters(recipe.model)["total"] < machine.memory / 2
    assert sum(round(source.weight * 1e6) for source in recipe.corpus.sources) == 1_000_000


def test_200_kilobytes_on_a_laptop(tmp_path: Path) -> None:
    jsonl(tmp_path / "notes.jsonl", [f"{i}. {EN * 5}" for i in range(480)])
    text = starter_recipe([str(tmp_path / "notes.jsonl")], 2, "mine", LAPTOP, tmp_path)
    recipe = loaded(tmp_path, text)
    (source,) = recipe.corpus.sources
    assert (source.name, source.language, source.weight, source.text_field) == ("notes", "en", 1.0, "text")
    assert "paths: [notes.jsonl]" in text
    assert recipe.tokenizer.vocab_size == 1024
    assert recipe.corpus.holdout >= 0.04
    sensible(recipe, 2, LAPTOP, 200e3)
    assert parameters(recipe.model)["total"] < 2e6
    assert "This is little text" in text
    assert "The text is the limit, not the time" in text


def test_25_megabytes_in_two_languages(tmp_path: Path) -> None:
    zh = Surveyed("zh", "jsonl", str(tmp_path / "zh.jsonl"), "content", 1, 14e6, 9000, 1.0, False, Counter(ZH), [ZH])
    en = Surveyed("en", "text", str(tmp_path / "en"), "", 900, 11e6, 900, 0.0, True, Counter(EN), [EN])
    text = write([zh, en], plan([zh, en], 6, LAPTOP), 6, "mine", LAPTOP, tmp_path)
    recipe = loaded(tmp_path, text)
    assert [(s.name, s.reader, s.language) for s in recipe.corpus.sources] == [
        ("zh", "jsonl", "zh"),
        ("en", "text", "en"),
    ]
    assert recipe.corpus.sources[0].weight == pytest.approx(0.56, abs=1e-6)
    assert recipe.corpus.sources[0].text_field == "content"
    assert recipe.tokenizer.vocab_size == 8192
    sensible(recipe, 6, LAPTOP, 25e6)
    tokens, weights, _ = budget(recipe)
    assert tokens / weights > 8
    assert recipe.report.prompts == ["这条河发源于", "The river rises in"]


def test_100_gigabytes_on_eight_gpus(tmp_path: Path) -> None:
    web = Surveyed("web", "jsonl", "/data/web/*.jsonl", "text", 1000, 100e9, 3e7, 0.3, True, Counter(EN + ZH), [EN])
    text = write([web], plan([web], 24, NODE), 24, "big", NODE, tmp_path)
    recipe = loaded(tmp_path, text)
    sensible(recipe, 24, NODE, 100e9)
    assert recipe.model.preset in ("large", "xl")
    assert (recipe.tokenizer.vocab_size, recipe.corpus.holdout, recipe.corpus.sources[0].language) == (
        32_000,
        0.01,
        "auto",
    )
    tokens, weights, flops = budget(recipe)
    assert tokens / weights >= 19
    assert flops / (8 * 989e12 * 0.35) / 3600 > 0.85 * 24, "the time is used"
    assert recipe.pretrain.peak_lr == 6e-4
    assert recipe.pretrain.precision == "bf16"
    assert max(map(len, text.split("\n"))) < 130


def test_hardly_any_time_is_said(tmp_path: Path) -> None:
    source = Surveyed("a", "text", "/a", "", 900, 11e6, 900, 0.0, False, Counter(EN), [EN])
    text = write([source], plan([source], 0.01, LAPTOP), 0.01, "mine", LAPTOP, tmp_path)
    unwrapped = text.replace("\n# ", " ")
    assert "That is hardly any training: give it more hours." in unwrapped
    assert "1 minute on 8 CPU cores" in unwrapped
    assert loaded(tmp_path, text).pretrain.eval_every == 25


def test_seven_gpus(tmp_path: Path) -> None:
    node = Machine("cuda", 7, 989e12, 80e9, "bf16", "7 x H800")
    web = Surveyed("web", "jsonl", "/data/web.jsonl", "text", 1, 1e9, 1e6, 0.0, False, Counter(EN), [EN])
    sensible(loaded(tmp_path, write([web], plan([web], 1, node), 1, "big", node, tmp_path)), 1, node, 1e9)


@pytest.mark.parametrize("hours", [0.01, 0.1, 1, 10, 1000])
@pytest.mark.parametrize("text_bytes", [1.1e4, 1e5, 1e6, 1e8, 1e10, 1e13])
@pytest.mark.parametrize("machine", [LAPTOP, NODE])
def test_every_size_of_text_and_time_loads(tmp_path: Path, hours: float, text_bytes: float, machine: Machine) -> None:
    documents = max(1, text_bytes // 5000)
    source = Surveyed("a", "text", "/a", "", int(documents), text_bytes, documents, 0.5, False, Counter(ZH), [])
    chosen: Plan = plan([source], hours, machine)
    recipe = loaded(tmp_path, write([source], chosen, hours, "a", machine, tmp_path))
    assert recipe.model == chosen.model
    assert recipe.pretrain.steps == chosen.steps >= 1
    tokens, _, flops = budget(recipe)
    step = tokens / chosen.steps * flops_per_token(recipe.model, recipe.model.context_length)[0]
    assert flops - step <= chosen.compute, "not longer than asked for, but for a step"


def test_a_folder_of_mixed_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "data/a/one.jsonl", [EN * 20] * 100)
    jsonl(tmp_path / "data/b/two.jsonl.gz", [EN * 20] * 100)
    (tmp_path / "data/c").mkdir()
    for number in range(100):
        (tmp_path / f"data/c/{number}.txt").write_text(ZH * 20, encoding="utf-8")
    (tmp_path / "data/.hidden").mkdir()
    (tmp_path / "data/.hidden/x.txt").write_text(EN)
    recipe = loaded(tmp_path, starter_recipe([str(tmp_path / "data")], 1, "mine", LAPTOP, tmp_path))
    found = {(source.name, source.reader, source.language) for source in recipe.corpus.sources}
    assert found == {("data", "jsonl", "en"), ("data-text", "text", "zh")}
    assert {path for source in recipe.corpus.sources for path in source.paths} == {str(tmp_path / "data")}


def test_big_files_are_sampled_and_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodel.survey.SAMPLE_BYTES", 1_000_000)
    chance = random.Random(0)
    texts = [(ZH if i < 5000 else EN) * chance.randrange(1, 12) for i in range(10_000)]
    true = [sum(len(text.encode()) for text in texts), len(texts)]
    for name in ("big.jsonl", "big.jsonl.gz"):
        (source,) = survey([str(jsonl(tmp_path / name, texts))])
        assert source.sampled
        if name == "big.jsonl":  # looked at in several places; a packed file only from its beginning
            assert [source.text_bytes, source.documents] == pytest.approx(true, rel=0.1)
            assert 0.4 < source.chinese < 0.65
    text = starter_recipe([str(tmp_path / "big.jsonl")], 1, "mine", LAPTOP, tmp_path)
    assert "from a sample" in text
    assert loaded(tmp_path, text).corpus.sources[0].language == "auto"


def test_the_text_field_is_found(tmp_path: Path) -> None:
    assert survey([str(jsonl(tmp_path / "a.jsonl", [EN], "content"))])[0].text_field == "content"
    path = tmp_path / "b.jsonl"
    path.write_text(json.dumps({"url": "http://x", "story": EN * 3, "n": 3}) + "\n")
    assert survey([str(path)])[0].text_field == "story"


def test_one_long_document_is_validated_on_the_sandbox(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(EN * 5000)
    text = starter_recipe([str(tmp_path / "book.txt")], 1, "mine", LAPTOP, tmp_path)
    recipe = loaded(tmp_path, text)
    assert recipe.corpus.holdout == 0
    assert recipe.corpus.validation[0].reader == "sandbox"
    assert "1 document is too few" in text


def test_names_and_prompts_survive_yaml(tmp_path: Path) -> None:
    odd = tmp_path / "no: #1 'odd' \"name\", 中文.jsonl"
    jsonl(odd, ['"quoted": #hash & {braces} [x] 中文 text here'] * 300)
    recipe = loaded(tmp_path, starter_recipe([str(odd)], 1, "on", LAPTOP, tmp_path / "elsewhere"))
    assert recipe.name == "on"
    assert recipe.corpus.sources[0].paths == [str(odd)]
    assert recipe.report.prompts == ['"quoted": #hash & {braces}']


def test_shares_sum_to_exactly_one() -> None:
    for sizes in ([1.0], [1, 1, 1], [1e12, 1], [3.0] * 7, [1e9, 1, 1, 5e8]):
        weights = shares(list(map(float, sizes)))
        assert sum(round(weight * 1e6) for weight in weights) == 1_000_000
        assert all(weight > 0 and round(weight, 6) == weight for weight in weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: [str(d / "none.jsonl")], "no such file or folder"),
        (lambda d: [str(d / "*.jsonl")], "the pattern matches no file"),
        (lambda d: [str(d)], "the folder holds no"),
        (lambda d: [(d / "a.txt").write_bytes(b"") or str(d / "a.txt")], "is empty"),
        (lambda d: [(d / "a.txt").write_bytes(b"short") and str(d / "a.txt")], "only 5 bytes of text"),
        (lambda d: [(d / "a.txt").write_bytes(b"caf\xe9 " * 9000) and str(d / "a.txt")], "invalid UTF-8 at byte 3"),
        (lambda d: [(d / "a.jsonl").write_bytes(b"[1]\n") and str(d / "a.jsonl")], "a.jsonl:1: no text in a field 'text' (the line has: list)"),
        (lambda d: [(d / "a.jsonl").write_bytes(b'{"n": 1}\n') and str(d / "a.jsonl")], "no text in a field 'text' (the line has: n)"),
        (lambda d: [(d / "a.jsonl").write_bytes(b'{"text": "a"}\noops\n') and str(d / "a.jsonl")], "a.jsonl:2: not JSON"),
        (lambda d: [(d / "a.jsonl").write_bytes(b"\n\n") and str(d / "a.jsonl")], "no text found"),
        (lambda d: [(d / "a.jsonl.gz").write_bytes(gzip.compress(b"{}" * 999)[:20]) and str(d / "a.jsonl.gz")], "damaged gzip"),
        (lambda d: [(d / "a.jsonl.gz").write_bytes(b"not gzip") and str(d / "a.jsonl.gz")], "damaged gzip"),
        (lambda d: [(d / "a.pdf").write_bytes(b"%PDF") and str(d / "a.pdf")], ".pdf is not read; convert it"),
        (lambda d: [str(jsonl(d / "a.jsonl", [EN])), str(d)], "is in both"),
        (lambda d: [], "no files given"),
    ],
)  # fmt: skip
def test_text_that_cannot_be_used(tmp_path: Path, make, message: str) -> None:
    with pytest.raises(UserError) as caught:
        starter_recipe(make(tmp_path), 1, "mine", LAPTOP, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), 1e9])
def test_hours_that_make_no_sense(tmp_path: Path, hours: float) -> None:
    path = jsonl(tmp_path / "a.jsonl", [EN * 100] * 100)
    with pytest.raises(UserError, match="give the time for training in hours"):
        starter_recipe([str(path)], hours, "mine", LAPTOP, tmp_path)
    with pytest.raises(UserError, match="cannot name a folder"):
        starter_recipe([str(path)], 1, "a/b", LAPTOP, tmp_path)


@pytest.mark.parametrize(("name", "language"), [("zh-modern", "zh"), ("en-peps", "en")])
def test_the_chosen_vocabulary_can_be_trained(tmp_path: Path, name: str, language: str) -> None:
    """A little real text: SentencePiece refuses a vocabulary that is too small for its characters, or too large."""
    source = SHARED / f"{name}.jsonl.gz"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    spm = pytest.importorskip("sentencepiece")
    with gzip.open(source, "rt", encoding="utf-8") as stream:
        lines = [line for record in stream for line in json.loads(record)["text"].split("\n") if line][:4000]
    lines = lines[: next(n for n in range(len(lines)) if sum(len(line.encode()) for line in lines[:n]) > 200_000)]
    path = jsonl(tmp_path / "text.jsonl", lines)
    recipe = loaded(tmp_path, starter_recipe([str(path)], 1, "mine", LAPTOP, tmp_path))
    assert recipe.corpus.sources[0].language in (language, "auto")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "t"), vocab_size=recipe.tokenizer.vocab_size,
        character_coverage=recipe.tokenizer.character_coverage, byte_fallback=True, num_threads=2, minloglevel=2,
        normalization_rule_name="identity", split_digits=True, remove_extra_whitespaces=False, add_dummy_prefix=False,
    )  # fmt: skip
    tokenizer = spm.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    measured = sum(len(line.encode()) + 1 for line in lines) / sum(len(ids) + 1 for ids in tokenizer.encode(lines))
    assert measured == pytest.approx(BYTES_PER_TOKEN[recipe.tokenizer.vocab_size], rel=0.35)

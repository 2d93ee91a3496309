"""Recipes as people write them, rightly and wrongly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodel.errors import UserError
from xmodel.recipe.convert import ALIASES, setting_paths
from xmodel.recipe.load import load_recipe, resolve
from xmodel.recipe.phases import mixture, shares
from xmodel.recipe.settings import Corpus, Model, Recipe, Source
from xmodel.recipe.summary import check_summary

GOOD = """\
name: trial
corpus:
  sources:
    - name: web
      paths: [web/*.jsonl]
      weight: 0.75
    - name: books
      reader: text
      paths: [/books, extra]
      weight: 0.25
tokenizer:
  vocab_size: 1000
model:
  layers: 2
  heads: 4
  kv_heads: 2
  hidden: 64
  context_length: 128
pretrain:
  steps: 10
  warmup_steps: 2
  global_batch: 8
"""


def write(folder: Path, text: str | bytes, name: str = "x.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "").split("\n")


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write(tmp_path, GOOD)


def test_resolves(good: Path) -> None:
    recipe = load_recipe(good)
    assert recipe.name == "trial"
    assert recipe.corpus.root == str(good.parent)
    assert recipe.corpus.sources[0].paths == [f"{good.parent}/web/*.jsonl"]
    assert recipe.corpus.sources[1].paths == ["/books", f"{good.parent}/extra"]
    assert (recipe.model.ffn, recipe.model.position_table, recipe.model.vocab_size) == (256, 128, 1000)
    assert recipe.pretrain.peak_lr == 6e-4


@pytest.mark.parametrize(
    ("written", "value"),
    [("2T", 2 * 10**12), ("600k", 600_000), ("1.5B", 1_500_000_000), ("2e12", 2 * 10**12), ("600_000", 600_000),
     ("7m", 7_000_000), ("'12'", 12), ("1.0", 1), ("2.5 M", 2_500_000), ("1e3k", 10**6)],
)  # fmt: skip
def test_counts(good: Path, written: str, value: int) -> None:
    assert load_recipe(good, [f"pretrain.eval_tokens={written}"]).pretrain.eval_tokens == value


@given(st.integers(0, 10**17))
def test_every_whole_number_in_every_form(value: int) -> None:
    from xmodel.recipe.convert import _int

    assert _int(str(value)) == _int(f"{value:_}") == _int(f"{value}e0") == value
    assert _int(f"{value}.0") == value
    assert _int(f"{value}.5") is None


@pytest.mark.parametrize(
    "written",
    [
        "1.5",
        "12x",
        "1,000",
        "0x10",
        "",
        "null",
        "one",
        "1e999999999",
        "nan",
        "[1]",
        "{a: 1}",
        "１２",
        "1__k",
        "-",
        "1.2345k",
    ],
)
def test_not_counts(good: Path, written: str) -> None:
    (line,) = problems(good, f"pretrain.eval_tokens={written}")
    assert line.startswith("override pretrain.eval_tokens=")
    assert "expected a whole number such as 600000, 600k or 2T" in line


@pytest.mark.parametrize("written", ["nan", "inf", "3e", "abc", "0,1", "５"])
def test_not_numbers(good: Path, written: str) -> None:
    assert problems(good, f"pretrain.peak_lr={written}") == [
        f"override pretrain.peak_lr={written}: expected a number such as 0.1 or 3e-4, got `{written}`"
    ]


def test_yaml_1_1_does_not_guess(tmp_path: Path) -> None:
    text = GOOD.replace("name: trial", "name: no").replace("name: web", "name: on").replace("name: books", "name: 1e3")
    text += "  peak_lr: 3e-4\n  final_lr: 1e-5\n  compile: on\ntokens:\n  bos: no\n"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.name == "no"
    assert [source.name for source in recipe.corpus.sources] == ["on", "1e3"]
    assert (recipe.pretrain.peak_lr, recipe.pretrain.compile, recipe.tokens.bos) == (3e-4, "on", False)


def test_null_is_for_settings_that_may_be_absent(good: Path) -> None:
    assert load_recipe(good, ["evaluate.limit=5", "evaluate.limit=null"]).evaluate.limit is None
    (line,) = problems(good, "name=null")
    assert "expected text, got nothing" in line


def test_empty_sections_are_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD + "evaluate:\nreport:\n  prompts: []\n"))
    assert recipe.evaluate == Recipe().evaluate
    assert recipe.report.prompts == []


def test_all_problems_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = GOOD.replace("steps: 10", "step: 10").replace("layers: 2", "layers: two") + "  peak_lrr: 3e-4\nsede: 1\n"
    assert problems(write(tmp_path, text)) == [
        "x.yaml:14: model.layers: expected a whole number such as 600000, 600k or 2T, got `two`",
        "x.yaml:20: pretrain.step: unknown setting; did you mean pretrain.steps?",
        "x.yaml:23: pretrain.peak_lrr: unknown setting; did you mean pretrain.peak_lr?",
        "x.yaml:24: sede: unknown setting; did you mean seed?",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.peak_lrr=3e-4", "unknown setting; did you mean pretrain.peak_lr?"),
        ("model.peak_lr=3e-4", "unknown setting; did you mean pretrain.peak_lr?"),
        ("peak_lr=3e-4", "unknown setting; did you mean pretrain.peak_lr?"),
        ("pretrain.learning_rate=1", "unknown setting; did you mean pretrain.peak_lr?"),
        ("lr=1", "unknown setting; did you mean pretrain.peak_lr?"),
        ("model.hidden_size=64", "unknown setting; did you mean model.hidden?"),
        ("modle.layers=4", "unknown setting; did you mean model?"),
        ("pretrain.xyzzy=4", "unknown setting; pretrain has steps, global_batch, "),
        ("corpus.sources.web.wieght=1", "unknown setting; did you mean corpus.sources.web.weight?"),
        ("corpus.sources.wbe.weight=1", "no item wbe; did you mean web?"),
        ("corpus.sources[7].weight=1", "no item [7]; there is web, books"),
        ("pretrain.compile=onn", "`onn` is not one of auto, on, off; did you mean on?"),
        ("pretrain.steps=0", "must be at least 1, got 0"),
        ("corpus.holdout=0.9", "must be between 0 and 0.5, got 0.9"),
        ("tokenizer.vocab_size=70k", "must be between 300 and 65,536, got 70k"),
        ("corpus.sources.web.paths=a.jsonl", "expected a list, got `a.jsonl`; write [a.jsonl]"),
        ("pretrain=fast", "expected settings such as `steps: ...`, got `fast`"),
        ("tokens.bos=2", "expected true or false, got `2`"),
        ("model.preset=xll", "; did you mean xl?"),
        ("seed.x=1", "expected a whole number such as 600000, 600k or 2T, got a section of settings"),
        ("name.x=1", "`x` stands inside a single value (x.yaml:1)"),
        ("extends=other.yaml", "unknown setting"),
        ("report.prompts=[a", "not valid YAML"),
    ],
)  # fmt: skip
def test_wrong_overrides(good: Path, override: str, message: str) -> None:
    (line,) = problems(good, override)
    assert line.startswith(f"override {override}: ")
    assert message in line


@pytest.mark.parametrize(
    "override", ["seed", "", "=3", ".=1", "a..b=1", "corpus.sources[x].weight=1", "a[=1", "pretrain.=1"]
)
def test_overrides_without_a_setting(good: Path, override: str) -> None:
    assert problems(good, override) == [f"override {override}: expected SETTING=VALUE, as in pretrain.peak_lr=3e-4"]


def test_overrides(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    recipe = load_recipe(
        good,
        ["corpus.sources.web.weight=0.3", "corpus.sources[1].weight=0.7", "evaluate.shots=[0, 5]", "evaluate.limit=7",
         'report.prompts=["a, b", c]', "pretrain={steps: 20, clip: 2}", "pretrain.clip = 0.5", "corpus.root=data", "seed=1", "seed=2"],
    )  # fmt: skip
    assert [source.weight for source in recipe.corpus.sources] == [0.3, 0.7]
    assert (recipe.evaluate.shots, recipe.evaluate.limit, recipe.report.prompts) == ([0, 5], 7, ["a, b", "c"])
    assert (recipe.pretrain.steps, recipe.pretrain.clip, recipe.pretrain.warmup_steps) == (20, 0.5, 2)
    assert recipe.corpus.root == "/data"  # as the shell completes it, not beside the recipe
    assert recipe.corpus.sources[0].paths == ["/data/web/*.jsonl"]
    assert recipe.seed == 2


def test_a_later_preset_replaces_an_earlier_shape_but_not_a_later_number(good: Path) -> None:
    model = load_recipe(good, ["model.layers=3", "model.preset=nano"]).model
    assert (model.layers, model.hidden, model.heads, model.kv_heads, model.preset) == (3, 192, 6, 1, "")
    assert model.context_length == 128
    assert load_recipe(good, ["model.preset=nano"]).model.preset == "nano"


def test_extends(good: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    middle = write(
        tmp_path / "sub", "extends: ../x.yaml\nmodel:\n  preset: tiny\npretrain:\n  clip: 3\n", "middle.yaml"
    )
    leaf = write(tmp_path, "extends: sub/middle.yaml\nname: leaf\npretrain:\n  steps: 30\n", "leaf.yaml")
    recipe = load_recipe(leaf)
    assert (recipe.name, recipe.pretrain.clip, recipe.pretrain.steps, recipe.pretrain.global_batch) == (
        "leaf",
        3,
        30,
        8,
    )
    assert recipe.model.preset == "tiny"
    assert recipe.corpus.sources[0].paths == [f"{tmp_path}/web/*.jsonl"]  # from the folder it was written in
    write(tmp_path, "extends: leaf.yaml\n" + GOOD)
    assert problems(leaf) == [
        "x.yaml:1: extends: goes round in a circle: leaf.yaml -> sub/middle.yaml -> x.yaml -> leaf.yaml"
    ]
    write(tmp_path, GOOD.replace("steps: 10", "stepps: 10"))
    assert problems(middle)[0].endswith("x.yaml:20: pretrain.stepps: unknown setting; did you mean pretrain.steps?")
    assert problems(write(tmp_path, "extends: xx.yaml\n", "y.yaml")) == [
        "y.yaml:1: extends: no such recipe: xx.yaml; did you mean x.yaml?"
    ]
    assert (
        problems(write(tmp_path, "extends: [x.yaml]\n", "y.yaml"))[0]
        == "y.yaml:1: extends: expected the path of one recipe file"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "model:\n  layers: 3\n", "x.yaml:23: model: given twice, first at x.yaml:13; keep one"),
        (GOOD + "  steps: 3\n", "x.yaml:23: steps: given twice, first at x.yaml:20; keep one"),
        (GOOD + "evaluate: &e {limit: 3}\nreport: *e\n", "x.yaml:24: aliases (*name) are not read here; write the value out"),
        (GOOD + "seed: !!int 3\n", "x.yaml:23: tags (tag:yaml.org,2002:int) are not read here; remove it"),
        (GOOD + "? [a]\n: 3\n", "x.yaml:23: expected the name of a setting before the colon"),
        ("a: " + "[" * 30 + "]" * 30, "x.yaml:1: nested too deeply"),
    ],
)  # fmt: skip
def test_yaml_that_is_not_read(tmp_path: Path, text: str, message: str) -> None:
    assert message in problems(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.yaml: is empty; `xmodel init` writes a starter recipe"),
        ("name: a: b\n", "x.yaml:1: not valid YAML: mapping values are not allowed in this context (near `name: a: b`); put the value in quotes"),
        ("name: a\nmodel:\n\tlayers: 3\n", "x.yaml:3: a tab cannot indent in YAML; use spaces"),
        ("name: [a\nseed: 1\n", "x.yaml:2: not valid YAML: "),
        ("name: *b\n", "x.yaml:1: aliases (*name) are not read here"),
        ("just text\n", "x.yaml:1: expected settings such as `name: my-run`, one a line"),
        ("- a\n- b\n", "x.yaml:1: expected settings such as `name: my-run`, one a line"),
        ("name: a\n---\nname: b\n", "x.yaml:2: a second YAML document (---); a recipe is one"),
        (b"name: a\n# caf\xe9\n", "x.yaml:2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("name: a".encode("utf-16"), "x.yaml:1: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"name: a\x00b\n", "x.yaml: not valid YAML: "),
        ("a: " + "[" * 100_000, "x.yaml"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read(tmp_path: Path, text: str | bytes, message: str) -> None:
    (line,) = problems(write(tmp_path, text))
    assert line.startswith(message)


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())).name == "trial"


def test_missing_files(tmp_path: Path, good: Path) -> None:
    assert problems(tmp_path / "xx.yaml") == ["no such recipe: xx.yaml; did you mean x.yaml?"]
    assert problems(tmp_path)[0].endswith(
        ": is a folder; give the recipe file in it; did you mean " + tmp_path.name + "/x.yaml?"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["corpus.sources.web.weight=0.7"], "x.yaml:3: corpus.sources: the weights sum to 0.95, not to 1 (0.05 is missing)"),
        (["corpus.sources.web.weight=0.750001"], "x.yaml:3: corpus.sources: the weights sum to 1.000001, not to 1 (0.000001 too much)"),
        (["corpus.sources.web.weight=0"], "x.yaml:3: corpus.sources: the weights sum to 0.25, not to 1 (0.75 is missing; web has none)"),
        (["corpus.sources.web.weight=0.3333333333"], "override corpus.sources.web.weight=0.3333333333: 0.3333333333 has more than 6 decimals"),
        (["corpus.sources.web.name=Books"], "x.yaml:7: corpus.sources.books: has the same name as another source (x.yaml:4)"),
        (["corpus.sources.web.name=a/b"], "override corpus.sources.web.name=a/b: corpus.sources.a/b.name: `a/b` cannot name a file; use letters, digits, `-` and `_`"),
        (["corpus.sources.web.paths=[]"], "override corpus.sources.web.paths=[]: the jsonl reader needs files, folders or patterns to read"),
        (["corpus.sources.web.reader=sandbox", "corpus.sources.web.paths=[]"],
         "override corpus.sources.web.paths=[]: the sandbox reader needs parts (en, zh, parallel) to read"),
        (["corpus.sources.web.reader=stdlib"], "x.yaml:5: corpus.sources.web.paths: the stdlib reader finds its files by itself; remove the line"),
        (["corpus.sources.web.reader=sandbox", "corpus.sources.web.paths=[english]"],
         "override corpus.sources.web.paths=[english]: the sandbox has the parts en, zh, parallel, not `english`; did you mean en?"),
        (["corpus.sources=[]"], "override corpus.sources=[]: no source of text is given; at least one is needed"),
        (["corpus.holdout=0"], "override corpus.holdout=0: is 0 and corpus.validation is empty, so there is no text to validate on; set one"),
        (["corpus.validation=[{paths: [v]}]"], "override corpus.validation=[{paths: [v]}]: corpus.validation[0]: needs a name"),
        (["corpus.filters.min_characters=3M"], "override corpus.filters.min_characters=3M: is larger than max_characters (2,000,000)"),
        (["model.hidden=66"], "x.yaml:15: model.heads: 4 heads do not divide the hidden size of 66"),
        (["model.hidden=12"], "x.yaml:15: model.heads: gives heads of size 3; rotary positions need an even size"),
        (["model.kv_heads=3"], "override model.kv_heads=3: 3 does not divide the 4 query heads"),
        (["model.layers=0"], "x.yaml:13: model: layers missing; give the numbers, or a preset: nano, micro, "),
        (["model.vocab_size=999"], "override model.vocab_size=999: is less than the tokenizer's 1,000 pieces"),
        (["model.vocab_size=70k"], "override model.vocab_size=70k: must be at most 65,536: token ids are stored as uint16"),
        (["model.position_table=100"], "override model.position_table=100: is less than context_length (128)"),
        (["pretrain.micro_batch=3"], "override pretrain.micro_batch=3: 3 does not divide the global_batch of 8"),
        (["pretrain.decay_steps=2"], "override pretrain.decay_steps=2: belongs to schedule: wsd; a cosine schedule"),
        (["pretrain.schedule=wsd", "pretrain.decay_steps=1M"], "override pretrain.decay_steps=1M: with warmup_steps (2) is more than the 10 steps"),
        (["pretrain.batch_warmup=[4]"], "x.yaml:19: pretrain.batch_warmup_steps: is 0; give the steps of each stage"),
        (["pretrain.batch_warmup_steps=4"], "override pretrain.batch_warmup_steps=4: is given, but batch_warmup is empty"),
        (["pretrain.batch_warmup=[8,4]", "pretrain.batch_warmup_steps=1"], "override pretrain.batch_warmup=[8,4]: must grow, up to the global_batch of 8"),
        (["pretrain.batch_warmup=[16]", "pretrain.batch_warmup_steps=1"], "override pretrain.batch_warmup=[16]: must grow, up to the global_batch of 8"),
        (["pretrain.batch_warmup=[3]", "pretrain.batch_warmup_steps=1"], "override pretrain.batch_warmup=[3]: 3 cannot be divided by the micro_batch of 4"),
        (["pretrain.batch_warmup=[4]", "pretrain.batch_warmup_steps=20"], "override pretrain.batch_warmup=[4]: takes 20 of the 10 steps"),
        (["pretrain.average_decay=1"], "override pretrain.average_decay=1: must be less than 1"),
        (["model.width_base=64", "model.tied_embeddings=true"], "override model.width_base=64: needs an output head of its own"),
        (["evaluate.during=[sandbox,sandbox]"], "override evaluate.during=[sandbox,sandbox]: the same value is given twice"),
        (["pretrain.eval_every=4", "evaluate.during_every=6"], "override evaluate.during_every=6: 6 is no multiple of pretrain.eval_every (4)"),
        (["pretrain.eval_every=0", "evaluate.during_every=6"], "override evaluate.during_every=6: is given, but pretrain.eval_every is 0"),
        (["pretrain.warmup_steps=11"], "override pretrain.warmup_steps=11: 11 is more than the 10 steps"),
        (["pretrain.final_lr=1e-2"], "override pretrain.final_lr=1e-2: 0.01 is more than peak_lr (0.0006)"),
        (["pretrain.beta2=1"], "override pretrain.beta2=1: must be less than 1"),
        (["pretrain.phases=[{from_step: 6, weights: {webb: 1}}]"], "override pretrain.phases=[{from_step: 6, weights: {webb: 1}}]: pretrain.phases[0].weights.webb: no source of this name; did you mean web?"),
        (["pretrain.phases=[{from_step: 6, weights: {web: 0.5}}]"], "override pretrain.phases=[{from_step: 6, weights: {web: 0.5}}]: pretrain.phases[0].weights: the weights sum to 0.5, not to 1 (0.5 is missing; books has none)"),
        (["pretrain.phases=[{from_step: 6}]"], "override pretrain.phases=[{from_step: 6}]: pretrain.phases[0].weights: the weights sum to 0, not to 1 (1 is missing; web, books have none)"),
        (["pretrain.phases=[{from_step: 11, weights: {web: 1}}]"], "override pretrain.phases=[{from_step: 11, weights: {web: 1}}]: pretrain.phases[0].from_step: 11 is beyond the last of the 10 steps"),
        (["pretrain.phases=[{from_step: 6, weights: {web: 1}}, {from_step: 6, weights: {web: 1}}]"], "override pretrain.phases=[{from_step: 6, weights: {web: 1}}, {fr…: pretrain.phases[1].from_step: 6: phases follow one another; begin after step 6, where the one before begins"),
        (["pretrain.phases=[{from_step: 6, weights: [1, 2]}]"], "override pretrain.phases=[{from_step: 6, weights: [1, 2]}]: pretrain.phases[0].weights: expected NAME: value pairs, got a list"),
        (["pretrain.phases=[{from_step: 1, weights: {web: 1}}]"], "override pretrain.phases=[{from_step: 1, weights: {web: 1}}]: pretrain.phases[0].from_step: must be at least 2, got 1"),
        (["pretrain.phases=[{from_step: 3, weights: {web: 2}}]"], "override pretrain.phases=[{from_step: 3, weights: {web: 2}}]: pretrain.phases[0].weights.web: must be between 0 and 1, got 2"),
        (["pretrain.document_mask=true", "tokens.bos=false"], "override pretrain.document_mask=true: needs tokens.bos: without <s> nothing predicts the first token of a document"),
        (["evaluate.shots=[1, 1]"], "override evaluate.shots=[1, 1]: the same value is given twice"),
        (["evaluate.shots=[1, -1]"], "override evaluate.shots=[1, -1]: evaluate.shots[1]: must be at least 0, got -1"),
        (["name=a/b"], "override name=a/b: `a/b` cannot name a folder; use letters, digits, `.`, `-` and `_`"),
        (["name=.."], "override name=..: `..` cannot name a folder; use letters, digits, `.`, `-` and `_`"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together(good: Path, overrides: list[str], message: str) -> None:
    (line,) = problems(good, *overrides)
    assert line.startswith(message)


def test_what_was_refused_is_not_blamed_twice(good: Path) -> None:
    assert len(problems(good, "corpus.sources.web.weight=half")) == 1
    assert len(problems(good, "pretrain.global_batch=x", "pretrain.micro_batch=3")) == 1
    assert len(problems(good, "pretrain.peak_lr=1e", "pretrain.final_lr=1")) == 1


def test_phases(good: Path) -> None:
    recipe = load_recipe(good, ["pretrain.phases=[{from_step: 9, weights: {books: 0.9, web: 0.1}}]"])
    assert mixture(recipe) == [(0, {"web": 0.75, "books": 0.25}), (64, {"books": 0.9, "web": 0.1})]
    assert shares(recipe) == {"web": pytest.approx(0.62), "books": pytest.approx(0.38)}
    assert ("source web", " 62.00% of the samples = 6.349k tokens") in check_summary(recipe)


def test_a_constant_rate_needs_no_final_rate(good: Path) -> None:
    assert load_recipe(good, ["pretrain.schedule=constant", "pretrain.peak_lr=1e-5"]).pretrain.peak_lr == 1e-5


def test_recipes_made_in_python(tmp_path: Path) -> None:
    corpus = Corpus(sources=[Source(name="a", paths=["a.jsonl"], weight=1.0)])
    recipe = Recipe(corpus=corpus, model=Model(preset="nano"))
    resolved = resolve(recipe, tmp_path)
    assert resolved.model.hidden == 192
    assert resolved.corpus.sources[0].paths == [f"{tmp_path}/a.jsonl"]
    assert recipe.model.hidden == 0, "the argument stays as it was"
    recipe.corpus.sources[0].weight = 0.5
    with pytest.raises(UserError, match=r"^corpus.sources: the weights sum to 0.5"):
        resolve(recipe, tmp_path)


def test_aliases_name_settings_that_exist() -> None:
    paths = set(setting_paths())
    assert set(ALIASES.values()) <= paths
    assert not {path.rsplit(".", 1)[-1] for path in paths if path.count(".") == 1} & {
        word for word, here in ALIASES.items() if here.rsplit(".", 1)[-1] == word
    }


def test_loading_imports_nothing_heavy() -> None:
    code = "import sys, xmodel.recipe.load, xmodel.recipe.schema; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "yaml", "pyarrow", "click"} & set(modules)

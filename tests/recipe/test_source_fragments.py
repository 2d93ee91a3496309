"""The fragments of recipes/sources: each loads, and its field map reads a row in the layout of that corpus."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xmodel.corpus import sources
from xmodel.recipe.load import load_recipe

FOLDER = Path(__file__).parents[2] / "recipes" / "sources"
FRAGMENTS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
URL = "https://example.org/a"
WEB = {"text": "T", "id": "x", "dump": "CC", "url": URL, "file_path": "f", "language_score": 0.9}
PAJAMA = {
    "text": "T",
    "meta": {"url": URL, "timestamp": "t", "source": "s", "language": "en"},
    "red_pajama_subset": "c4",
}
LAYOUTS = {  # a row as each corpus has it
    "redpajama": PAJAMA,
    "pile": {"text": "T", "meta": {"pile_set_name": "PubMed Central"}},
    "wanjuan": {"id": "x", "content": "T"},
    "telechat-ptd": {"data": "T"},
    "starcoder": {"max_stars_repo_path": URL, "max_stars_repo_name": "n", "max_stars_count": 3, "id": "1", "content": "T"},
    "openwebmath": {"url": URL, "text": "T", "date": "2023", "metadata": "{}"},
    "fineweb-edu": {**WEB, "language": "en", "token_count": 7, "score": 3.1, "int_score": 3},
    "fineweb-2-zh": {**WEB, "date": "d", "language": "cmn", "language_script": "Hani", "minhash_cluster_size": 1, "top_langs": "{}"},
    "skypile": {"text": "T"},
    "cci3": {"id": "x", "text": "T", "score": 4.0},
    "chinese-fineweb-edu": {"text": "T", "score": 0.9},
    "wikipedia": {"id": "12", "url": URL, "title": "标题", "text": "T"},
    "mnbvc": {"文件名": "x", "是否待查文件": False, "文件大小": 9, "段落": [{"行号": 1, "内容": "T"}, {"行号": 2, "内容": "U"}]},
}  # fmt: skip


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment(name, tmp_path):
    recipe = load_recipe(FOLDER / f"{name}.yaml", ["model.preset=nano"])
    row = LAYOUTS[name]
    for number, source in enumerate(recipe.corpus.sources):
        if source.reader == "hf":
            assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", path) for path in source.paths), "an id of the hub"
        folder = tmp_path / source.name
        folder.mkdir()
        if source.reader == "jsonl":
            (folder / "a.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
        else:
            pq.write_table(pa.Table.from_pylist([row]), folder / "train-00000-of-00001.parquet")
        source.paths, source.subset = [str(folder)], ""
        (found,) = [r for batch in sources.read(source, f"corpus.sources[{number}]", seed=0) for r in batch.to_pylist()]
        assert found["text"] == {"wikipedia": "标题\n\nT", "mnbvc": "T\nU"}.get(name, "T")
        assert found["language"] == (None if source.language == "auto" else source.language)
        assert found["category"] == source.category
        assert found["licence"] == (source.licence or None)
        if source.fields.provenance:
            assert found["provenance"] in (URL, "s", "PubMed Central")
        if source.fields.id and any(key in row for key in ("id", "文件名")):
            assert found["id"] in ("x", "12", "1")


def test_every_fragment_says_what_was_checked_and_has_a_layout():
    assert set(FRAGMENTS) == set(LAYOUTS)
    for name in FRAGMENTS:
        head = (FOLDER / f"{name}.yaml").read_text().split("corpus:")[0]
        assert re.search(r"[Cc]hecked \(?20\d\d-\d\d-\d\d", head), name


def test_a_recipe_extends_a_fragment(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {FOLDER / 'openwebmath.yaml'}\nname: mine\nmodel: {{preset: nano}}\n")
    assert load_recipe(path).corpus.sources[0].paths == ["open-web-math/open-web-math"]


def test_a_local_copy_comes_before_the_hub(tmp_path):
    (tmp_path / "open-web-math" / "open-web-math").mkdir(parents=True)
    path = tmp_path / "mine.yaml"
    path.write_text(f"extends: {FOLDER / 'openwebmath.yaml'}\nmodel: {{preset: nano}}\ncorpus: {{root: {tmp_path}}}\n")
    assert load_recipe(path).corpus.sources[0].paths == [str(tmp_path / "open-web-math" / "open-web-math")]

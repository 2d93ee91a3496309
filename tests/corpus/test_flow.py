"""The corpus stage by any number of workers: the same bytes, whoever did the work and however often it was cut off."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from command import xmodel

from xmodel.corpus import shards, sources, workers
from xmodel.corpus.batches import alive
from xmodel.corpus.decontaminate import decontamination
from xmodel.corpus.deduplicate import signatures, signing
from xmodel.corpus.filters import filtering
from xmodel.corpus.folding import folding
from xmodel.corpus.holdout import held_out
from xmodel.corpus.lines import cleaning
from xmodel.corpus.mapping import Job, process_shard, question_sets
from xmodel.corpus.pipeline import build_corpus, carry_out_share
from xmodel.corpus.preparation import prepare
from xmodel.corpus.sources import read
from xmodel.errors import MachineError, UserError
from xmodel.recipe.settings import Corpus, Filters, LineFilters, NearDuplicates, Source

RECIPE = """\
name: killed
seed: 5
corpus:
  dirt: 0.2
  decontaminate: false
  keep_dropped: true
  sources:
"""
for number, part in enumerate(("en", "zh", "parallel") * 3):
    RECIPE += (
        f"    - {{name: s{number}, reader: sandbox, paths: [{part}], weight: 0.1, documents: {1500 + 100 * number}}}\n"
    )
RECIPE += "    - {name: s9, reader: stdlib, language: en, weight: 0.1, documents: 50}\nmodel: {preset: nano}\n"


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path inside it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mixed(folder: Path, **changed) -> Corpus:
    """A corpus of many small shards: JSON lines in several files (one empty), text files, the sandbox, validation."""
    folder.mkdir(exist_ok=True)
    texts = [f"The lighthouse keeper lit lamp number {n} and wrote it down in the book." for n in range(400)]
    for number in range(4):
        lines = [{"id": f"{number}-{n}", "text": text} for n, text in enumerate(texts[70 * number : 70 * number + 120])]
        path = folder / f"part{number}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) if number != 2 else "")
    (folder / "own.jsonl").write_text("".join(json.dumps({"text": text.upper()}) + "\n" for text in texts[50:60] * 2))
    for name in ("few0", "few1"):
        more = [f"{text} It was the year of the {name}." if n % 2 else text for n, text in enumerate(texts[:90])]
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"id": f"{name}-{n}", "text": text}) + "\n" for n, text in enumerate(more))
        )
    for number in range(9):
        (folder / f"text{number}.txt").write_text(f"每天傍晚，守塔人都会爬上楼梯，点亮第{number % 7}盏灯。" * 3)
    training = [
        Source(name="lines", paths=[str(folder / "part*.jsonl")], weight=0.3),
        Source(name="few", paths=[str(folder / "few*.jsonl")], weight=0.1, documents=150),
        Source(name="texts", reader="text", paths=[str(folder)], language="zh", weight=0.1),
        Source(name="world", reader="sandbox", paths=["zh", "parallel"], weight=0.5, documents=700),
    ]
    validation = [Source(name="own", paths=[str(folder / "own.jsonl")])]
    settings = Corpus(sources=training, validation=validation, dirt=0.2, holdout=0.1, keep_dropped=True, workers=1)
    return replace(settings, **changed)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(sources, "SHARD_BYTES", 3000)
    monkeypatch.setattr(sources, "SHARD_DOCUMENTS", 100)


def build(settings: Corpus, folder: Path, **options) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    build_corpus(settings, seed=4, folder=folder, **options)
    return tree(folder)


def streamed(settings: Corpus, seed: int) -> tuple[dict, dict, dict]:
    """The same corpus in one pass with plain sets: rows of train/, validation/ and dropped/ (with their reasons).

    Without near duplicates and without counting lines, which need the whole corpus.
    """
    questions = [item for items in question_sets(settings, seed).values() for item in items]
    decontaminating, seen, in_validation = decontamination(questions), set(), set()
    train, validation, dropped = {}, {"en": [], "zh": []}, {}
    for kind, own in (("validation", settings.validation), ("train", settings.sources)):
        for source in own:
            for batch in read(source, "", seed=seed, dirt=settings.dirt):
                batch = cleaning(folding(batch), settings.filters.lines)
                batch = filtering(batch, settings.filters, source.language)
                batch = signing(decontaminating(batch))
                held_D = held_out(signatures(batch), settings.holdout, seed)
                for row, lives, held in zip(batch.to_pylist(), alive(batch), held_D, strict=True):
                    key = row["signature"]
                    if lives and kind == "train" and key in in_validation:
                        row["reason"] = "in_validation"
                    elif lives and settings.deduplicate and key in seen:
                        row["reason"] = "duplicate"
                    facts = (row["id"], row["text"], row["language"], source.name, source.category)
                    if row["reason"] is not None:
                        dropped.setdefault(source.name, []).append((*facts, row["reason"], row["label"]))
                        continue
                    seen.add(key)
                    if kind == "validation":
                        in_validation.add(key)
                    if kind == "validation" or held:
                        validation[row["language"]].append(facts)
                    else:
                        train.setdefault(source.name, []).append(facts)
    return train, {language: rows for language, rows in validation.items() if rows}, dropped


@pytest.mark.parametrize("deduplicate", [True, False])
def test_shards_give_what_one_pass_gives(tmp_path, small_shards, deduplicate):
    filters = Filters(lines=LineFilters(max_document_share=1.0))
    near = NearDuplicates(mode="off")
    settings = mixed(tmp_path / "text", deduplicate=deduplicate, filters=filters, near_duplicates=near)
    assert len(shards.shards(settings, 4)) == 23
    build(settings, tmp_path / "corpus")
    for folder, expected in zip(("train", "validation", "dropped"), streamed(settings, 4), strict=True):
        columns = ["id", "text", "language", "source", "category", *(["reason", "label"] * (folder == "dropped"))]
        found = {
            path.stem: [tuple(row.values()) for row in pq.read_table(path, columns=columns).to_pylist()]
            for path in (tmp_path / "corpus" / folder).glob("*.parquet")
        }
        assert found == expected
    reasons = {row[5] for rows in expected.values() for row in rows}
    assert {"in_validation", "contaminated", "too_short"} <= reasons
    assert ("duplicate" in reasons) == deduplicate


def test_the_same_bytes_whoever_does_the_work(tmp_path, small_shards):
    settings = mixed(tmp_path / "text", decontaminate=False)  # so that a worker starts quickly
    one = build(settings, tmp_path / "one")
    assert build(replace(settings, workers=2), tmp_path / "two") == one
    assert build(replace(settings, workers=5), tmp_path / "five") == one
    work = tmp_path / "work"
    for rank in (2, 0, 2):  # in any order, one of them twice, one never
        done, total = carry_out_share(settings, seed=4, work=work, rank=rank, world=3)
    assert (done, total) == (15, 23)
    stamps = {path: path.stat().st_mtime_ns for path in (work / "shards").iterdir()}
    assert build(settings, tmp_path / "ranks", work=work) == one
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert len(json.loads((work / "manifest.json").read_text())) == total


def test_on_ray_the_same_bytes(tmp_path, small_shards, monkeypatch):
    pytest.importorskip("ray")
    settings = mixed(tmp_path / "text")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert build(settings, tmp_path / "ray", ray="local") == build(settings, tmp_path / "one")


def test_half_done_work_of_other_settings_is_not_used(tmp_path, small_shards):
    settings = mixed(tmp_path / "text")
    other = replace(settings, filters=replace(settings.filters, min_characters=60), dirt=0.1)
    carry_out_share(other, seed=4, work=tmp_path / "work", rank=0, world=1)
    (tmp_path / "text" / "part0.jsonl").write_text(json.dumps({"text": "Another text, long enough to be kept."}) + "\n")
    assert build(settings, tmp_path / "used", work=tmp_path / "work") == build(settings, tmp_path / "fresh")


def test_a_shard_that_lost_a_file_is_done_again(tmp_path, small_shards):
    job = Job(mixed(tmp_path / "text"), 4, tmp_path / "work")
    todo = shards.shards(job.settings, 4)
    prepared, shard = prepare(job, todo, workers.here), todo[3]
    process_shard(job, prepared, shard)
    before = tree(job.work)
    for kind in job.kinds:
        job.path(shard, kind).unlink()
        assert not job.done(shard)
        process_shard(job, prepared, shard)
        assert tree(job.work) == before


# ── Kills ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "killed.yaml").write_text(RECIPE)
    result = xmodel("corpus", folder / "killed.yaml", "corpus.workers=1", "--dir", folder / "run")
    assert result.returncode == 0, result.stderr
    assert not (folder / "run" / "corpus.work").exists()
    return tree(folder / "run" / "corpus")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_kill_9_at_random_moments_changes_nothing(undisturbed, tmp_path, count):
    """Workers and the driver die; the command is repeated until it comes through."""
    (tmp_path / "killed.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "xmodel", "corpus", tmp_path / "killed.yaml", f"corpus.workers={count}"]
    chance = random.Random(count)
    for victim in ("worker", "driver", "nobody"):
        with subprocess.Popen([*command, "--dir", tmp_path / "run"], stderr=subprocess.PIPE, text=True) as driver:
            shard_folder = tmp_path / "run" / "corpus.work" / "shards"
            while not shard_folder.exists() and driver.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.6))
            children = psutil.Process(driver.pid).children() if driver.poll() is None else []
            if victim == "driver":
                driver.kill()
            elif victim == "worker" and children:
                chance.choice(children).send_signal(signal.SIGKILL)
            _, errors = driver.communicate(timeout=120)
            assert driver.returncode in ((0,) if victim != "driver" else (0, -signal.SIGKILL)), errors
    assert tree(tmp_path / "run" / "corpus") == undisturbed
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix in (".work", ".partial")]


def dies_once(folder: Path, item: int) -> int:
    if item % 3 == 1 and not (folder / str(item)).exists():
        (folder / str(item)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def dies_always(item: int) -> int:
    if item == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def fails(item: int) -> int:
    if item == 1:
        raise UserError("line 3 of a file")
    return 1 // (item - 3)


def test_a_killed_worker_costs_its_item_only(tmp_path, capsys):
    found = dict(workers.in_processes(partial(dies_once, tmp_path), range(8), 2))
    assert found == {item: item * item for item in range(8)}
    assert capsys.readouterr().err.count("a worker was killed by SIGKILL; what it was at is done again") == 3


def test_a_worker_that_dies_again_and_again_is_reported():
    with pytest.raises(MachineError, match=r"killed by SIGKILL, 3 times at the same work \(2\).*lower corpus\.workers"):
        list(workers.in_processes(dies_always, range(4), 2))
    assert not multiprocessing.active_children()


def test_what_a_worker_raises_is_raised_here():
    with pytest.raises(UserError, match="line 3 of a file"):
        list(workers.in_processes(fails, [0, 1, 2], 2))
    with pytest.raises(ZeroDivisionError) as raised:
        list(workers.in_processes(fails, [3], 1))
    assert "in a worker process:" in raised.value.__notes__[0]


# ── Bounds and bad input ─────────────────────────────────────────────────────────────────────────────────────────────

MEASURE = """
import json, re, resource, sys
from pathlib import Path
from xmodel.corpus.pipeline import build_corpus
from xmodel.recipe.settings import Corpus, NearDuplicates, Source
folder, megabytes = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
words = "the keeper of an old lighthouse wrote in her book that ships went by in fog and rain at night".split()
number = 0
for file in range(megabytes // 5):
    with open(folder / f"{file:03}.jsonl", "w") as stream:
        for _ in range(5 * 500):
            number += 1
            text = ". ".join(" ".join(words[number * k % 19] + str(number + k) for k in range(i, i + 9)) for i in range(30))
            stream.write(json.dumps({"text": text}) + "\\n")
corpus = folder / "corpus"
corpus.mkdir()
source = Source(name="s", paths=[str(folder / "*.jsonl")], weight=1.0)
near = NearDuplicates(permutations=64)  # whose file is mapped, and counts as memory though it need not stay
build_corpus(Corpus(sources=[source], near_duplicates=near, workers=1), seed=0, folder=corpus)
print(json.loads((corpus / "funnel.json").read_text())["total"]["kept"]["bytes"])
status = Path("/proc/self/status")  # ru_maxrss begins with what the process that started this one had
found = re.search(r"VmHWM:\\s+(\\d+)", status.read_text()) if status.exists() else None
print((int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) // 1024)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    peaks, sizes = [], []
    for megabytes in (5, 35, 100):  # the first one compiles, which takes memory too
        command = [sys.executable, "-c", MEASURE, str(tmp_path / str(megabytes)), str(megabytes)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        sizes.append(int(output[0]))
        peaks.append(int(output[1]))
    assert sizes[2] > 2.8 * sizes[1] > 50e6
    assert peaks[2] < 700
    assert peaks[2] < peaks[1] + 60, peaks


def test_a_full_disk_is_an_error_and_the_rest_is_done_later(tmp_path, undisturbed):
    """A limit on the size of files stands for the full disk: both end in a failed write."""
    (tmp_path / "killed.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "xmodel", "corpus", tmp_path / "killed.yaml", "corpus.workers=2"]
    result = subprocess.run(
        [*command, "--dir", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)),
    )
    assert result.returncode == 1, result.stderr
    assert "the disk is full" in result.stderr.strip().splitlines()[-1]
    result = xmodel("corpus", tmp_path / "killed.yaml", "--dir", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "shards are done already" in result.stderr
    assert tree(tmp_path / "run" / "corpus") == undisturbed


def test_nothing_left_is_loud_and_shows_the_funnel(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "too short"}) + "\n")
    settings = Corpus(sources=[Source(name="s", paths=[str(tmp_path / "a.jsonl")], weight=1.0)])
    with pytest.raises(UserError, match=r"corpus\.sources\[0\] \(s\): no document is left of 1: dropped 1 too_short"):
        build(settings, tmp_path / "corpus")
    assert "too_short 1" in capsys.readouterr().err
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"corpus\.sources\[0\] \(s\): holds no document"):
        build(settings, tmp_path / "empty")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--rank", "0"), "give both"),
        (("--rank", "2", "--world", "2"), "from 0 to one less than the world"),
        (("--rank", "0", "--world", "2", "--redo", "corpus"), "neither --ray nor --redo"),
    ],
)
def test_mistakes_with_ranks(tmp_path, arguments, expected):
    (tmp_path / "killed.yaml").write_text(RECIPE)
    result = xmodel("corpus", tmp_path / "killed.yaml", "--dir", tmp_path / "run", *arguments)
    assert result.returncode == 2
    assert expected in result.stderr

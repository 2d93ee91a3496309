"""Near duplicates: sketches, candidates, verification, clusters, the index, and how much of the sandbox's is found."""

from __future__ import annotations

import random
from collections import Counter
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xmodel.corpus import sandbox
from xmodel.corpus.batches import raw_batch, with_column
from xmodel.corpus.deduplicate import signing
from xmodel.corpus.folding import fold_texts, folding
from xmodel.corpus.near_duplicates import compare, find_near_duplicates, records, sketching, write_records
from xmodel.corpus.near_duplicates.pairs import bucket_keys, hamming, masks, mix_all, similarity, slots, threshold
from xmodel.corpus.near_duplicates.sketch import sketch
from xmodel.corpus.sandbox.dirt import edited
from xmodel.corpus.sandbox.draw import Draw
from xmodel.errors import MachineError, UserError
from xmodel.recipe.settings import NearDuplicates

WORDS = [
    "river",
    "stone",
    "月亮",
    "图书馆",
    "garden",
    "seven",
    "天气",
    "walked",
    "quietly",
    "苹果",
    "history",
    "ocean",
    "星期",
    "letter",
    "green",
    "城市",
]
MASK = (1 << 64) - 1


def prose(seed: int, words: int = 60) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + str(draw.randrange(50)) for _ in range(words))


def worn(text: str, share: float, seed: int) -> str:
    draw = Draw("train", "en")
    draw.restart(seed, 0, 0)
    return edited(draw, text, share)


def sketched(texts: list[str], setup: NearDuplicates) -> np.ndarray:
    return records(sketching(folding(raw_batch([f"d{n}" for n in range(len(texts))], texts)), setup), setup)


def shingle_hashes(text: str) -> list[int]:
    """Hashes of 5-grams, in the words of the definition: a polynomial in the code points, then splitmix64's end."""
    found = []
    for start in range(len(text) - 4):
        value = 0
        for character in text[start : start + 5]:
            value = (value * 0x9E3779B97F4A7C15 + ord(character) + 1) & MASK
        value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ value >> 27) * 0x94D049BB133111EB) & MASK
        found.append(value ^ value >> 31)
    return found


@settings(max_examples=60, deadline=None)
@example(["00000000"], 9)  # more equal 5-grams than the counters hold at once
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), min_size=1, max_size=4), st.integers(1, 9)
)
def test_simhash_is_the_sign_of_the_bit_sums_and_minhash_the_smallest_of_each_slot(texts, repeats):
    texts = [text * (repeats * 12 if number == 0 else 1) for number, text in enumerate(texts)]  # over 255 shingles too
    column = pa.array([b"before", *(text.encode() for text in texts)], pa.binary())[1:]
    for text, made in zip(texts, sketch(column, 16), strict=True):
        hashes = shingle_hashes(text)
        sums = [sum(1 if value >> bit & 1 else -1 for value in hashes) for bit in range(64)]
        assert int(made["simhash"]) == sum(1 << bit for bit in range(64) if sums[bit] > 0)
        assert made["characters"] == len(text)
        for slot in range(16):
            own = [(value & (1 << 36) - 1, at) for at, value in enumerate(hashes) if value >> 60 == slot]
            if own:
                value, at = min(own)
                assert (made["values"][slot], made["positions"][slot]) == (value & 0xFFFF, at * 256 // len(text))


def test_equal_slots_estimate_the_jaccard_similarity():
    errors = []
    for seed in range(60):
        one = prose(seed, 25 + seed)  # some have fewer 5-grams than there are slots
        other = worn(one, (seed % 10) / 60, seed)
        sets = [set(shingle_hashes(text)) for text in (one, other)]
        both = sketch(pa.array([one.encode(), other.encode()], pa.binary()), 256)["values"]
        errors.append((both[0] == both[1]).mean() - len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    assert abs(np.mean(errors)) < 0.012  # standard error of the mean: 0.03 / sqrt(60)
    assert np.std(errors) < 0.045  # sqrt(J (1 - J) / 256) is 0.031 at most


@pytest.mark.parametrize("distance", [0, 1, 2, 3])
def test_no_pair_within_hamming_distance_3_is_missed(distance):
    tables = masks(distance)
    assert len(set(tables.tolist())) == 20
    flips = [sum(1 << bit for bit in bits) for bits in combinations(range(64), distance)]
    differs = np.array(flips, np.uint64)[:, None] & tables
    assert (differs == 0).any(axis=1).all()


def test_wider_tables_reach_what_they_promise():
    tables, shown = masks(18), slots(18, 256)
    assert len(set(tables.tolist())) == len(tables) == len({tuple(row) for row in shown.tolist()}) == 128
    assert {bin(mask).count("1") for mask in tables.tolist()} == {8}
    assert {len(set(row)) for row in shown.tolist()} == {3}
    draw, values = random.Random(3), np.random.default_rng(3)
    for distance, promised in ((12, 0.998), (16, 0.96), (18, 0.90)):
        flips = [sum(1 << bit for bit in draw.sample(range(64), distance)) for _ in range(4000)]
        equal = values.permuted(np.tile(np.arange(256) < 0.65 * 256, (4000, 1)), axis=1)  # of the values
        same = (np.array(flips, np.uint64)[:, None] & tables) == 0
        reached = (same & equal[:, shown].all(axis=2)).any(axis=1).mean()
        assert reached == pytest.approx(promised, abs=0.02)


@settings(deadline=None)
@given(st.integers(0, MASK), st.integers(0, MASK))
def test_hamming(one, other):
    assert hamming(np.uint64(one), np.uint64(other)) == bin(one ^ other).count("1")


def compared(one: str, other: str, least: float) -> float:
    made = sketched([one, other], NearDuplicates())["sketch"]
    there, back = (
        similarity(made["characters"], made["values"], made["positions"], *pair, least) for pair in ((0, 1), (1, 0))
    )
    assert there == pytest.approx(back, abs=0.02)
    return there


def test_a_copy_is_verified_and_a_page_of_the_same_template_is_not():
    text = prose(1, 120)
    assert compared(text, text, 0.3) == 1.0
    assert compared(text, worn(text, 0.02, 5), 0.65) > 0.7
    assert 0.3 < compared(text, worn(text, 0.1, 5), 0.3) < 0.6
    assert compared(text, "a line above it all. " + text, 0.65) > 0.85  # everything is shifted by the same
    assert compared(text, prose(2, 120), 0.0) < 0.05
    parts = [prose(seed, 12) for seed in range(10)]
    shuffled = parts[5:] + parts[:5]
    random.Random(4).shuffle(shuffled)
    assert compared(" ".join(parts), " ".join(shuffled), 0.3) < 0.3  # nearly all 5-grams, in another order
    half = " ".join([*parts[:5], prose(99, 60)])
    assert compared(" ".join(parts), half, 0.3) == 0.0  # one long passage in common, evenness is wanting


MODES = [NearDuplicates(mode="simhash"), NearDuplicates(mode="simhash", distance=3), NearDuplicates(mode="minhash")]


def brute_force(recorded: np.ndarray, setup: NearDuplicates) -> list[int]:
    """The first member of each document's cluster, by comparing everything with everything; -1 for first ones."""
    made = recorded["sketch"]
    keys = bucket_keys(made, setup)
    near: dict[int, set[int]] = {number: set() for number in range(len(made))}
    for one, other in combinations(np.flatnonzero(recorded["takes_part"]).tolist(), 2):
        close = (
            setup.mode == "minhash"
            or bin(int(made["simhash"][one] ^ made["simhash"][other])).count("1") <= setup.distance
        )
        if close and (keys[one] == keys[other]).any():
            alike = similarity(made["characters"], made["values"], made["positions"], one, other, threshold(setup))
            if alike > 0:
                near[one].add(other)
                near[other].add(one)
    first = []
    for number in range(len(made)):
        reached, todo = {number}, [number]
        while todo:
            fresh = near[todo.pop()] - reached
            reached |= fresh
            todo += fresh
        first.append(min(reached) if min(reached) < number else -1)
    return first


def families(seed: int, count: int) -> list[str]:
    """Texts, worn copies of them, and copies of copies."""
    draw = random.Random(seed)
    texts = [prose(seed * 100, 40)]
    for number in range(1, count):
        source = draw.choice(texts)
        texts.append(
            prose(seed * 100 + number, 40)
            if draw.random() < 0.3
            else worn(source, draw.choice((0, 0.01, 0.03, 0.08)), number)
        )
    return texts


def write_files(
    folder: Path, recorded: np.ndarray, cuts: list[int], setup: NearDuplicates, name: str = ""
) -> list[Path]:
    files = []
    for number, part in enumerate(np.split(recorded, cuts)):
        files.append(folder / f"{name}{number:03d}.npy")
        write_records(files[-1], [part], setup)
    return files


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_the_outcome_is_that_of_brute_force_however_the_work_is_cut(data):
    setup = data.draw(st.sampled_from(MODES))
    texts = families(data.draw(st.integers(0, 30)), data.draw(st.integers(1, 24)))
    recorded = sketched(texts, setup)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(texts)), max_size=4)))

    def mapper(function, numbers):
        numbers = list(numbers)
        random.Random(len(texts)).shuffle(numbers)
        return [function(number) for number in numbers]

    with TemporaryDirectory() as name:
        folder = Path(name)
        files = write_files(folder, recorded, cuts, setup)
        partitions = data.draw(st.integers(1, 9))
        kept = find_near_duplicates(files, setup, folder / "index", mapper=mapper, partitions=partitions)
        assert [len(part) for part in kept] == [len(part) for part in np.split(recorded, cuts)]
        assert np.concatenate(kept).tolist() == brute_force(recorded, setup)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_a_later_batch_meets_the_index_as_if_all_had_come_at_once(data):
    setup = data.draw(st.sampled_from(MODES))
    texts = families(data.draw(st.integers(0, 30)), 24)
    recorded = sketched(texts, setup)
    cut = data.draw(st.integers(0, len(texts)))
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = write_files(folder, recorded, [cut], setup)
        (early,) = find_near_duplicates(files[:1], setup, folder / "early")
        files[0].unlink()  # the index alone is needed
        (late,) = find_near_duplicates(files[1:], setup, folder / "late", index=folder / "early")
        at_once = brute_force(recorded, setup)
        assert early.tolist() == brute_force(recorded[:cut], setup)
        assert late.tolist() == at_once[cut:]
        assert np.load(folder / "late" / "kept.npy")[:cut].tolist() == early.tolist()  # stays as it is


def test_who_does_not_take_part(tmp_path):
    setup = NearDuplicates(shortest=100)
    text = prose(7)
    batch = raw_batch(["a", "b", "c", "d", "e"], [text, text, text, "short and sweet", "short and sweet"])
    batch = with_column(batch, "reason", pa.array(["symbols", None, None, None, None]))
    recorded = records(sketching(folding(batch), setup), setup)
    write_records(tmp_path / "r.npy", [recorded], setup)
    (kept,) = find_near_duplicates([tmp_path / "r.npy"], setup, tmp_path / "one")
    assert kept.tolist() == [-1, -1, 1, -1, -1]
    excluded = [np.array([False, True, False, False, False])]
    (kept,) = find_near_duplicates([tmp_path / "r.npy"], setup, tmp_path / "two", excluded=excluded)
    assert kept.tolist() == [-1] * 5


def test_an_empty_corpus(tmp_path):
    setup = NearDuplicates()
    assert find_near_duplicates([], setup, tmp_path / "none") == []
    write_records(tmp_path / "r.npy", [], setup)
    (kept,) = find_near_duplicates([tmp_path / "r.npy"], setup, tmp_path / "empty")
    assert kept.tolist() == []


def test_a_call_that_was_cut_short_is_taken_up(tmp_path):
    setup = NearDuplicates()
    recorded = sketched(families(1, 24), setup)
    files = write_files(tmp_path, recorded, [9], setup)
    folder = tmp_path / "index"
    done: list[str] = []

    def failing(function, numbers):
        for number in numbers:
            if len(done) == 4:
                raise KeyboardInterrupt
            done.append(f"{function.func.__name__} {number}")
            yield function(number)

    with pytest.raises(KeyboardInterrupt):
        find_near_duplicates(files, setup, folder, mapper=failing, partitions=6)
    assert done == ["_write_buckets 0", "_write_pairs 0", "_write_pairs 1", "_write_pairs 2"]
    written = {path: path.stat().st_mtime_ns for path in (folder / "pairs").iterdir()}
    assert len(written) == 3

    def watching(function, numbers):
        yield from map(function, numbers)
        for path, time in written.items():
            assert path.stat().st_mtime_ns == time, "made again"

    kept = find_near_duplicates(files, setup, folder, mapper=watching, partitions=6)
    assert np.concatenate(kept).tolist() == brute_force(recorded, setup)
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "kept.npy", "plan.json", "records.npy"]
    other = find_near_duplicates(files[:1], setup, folder)  # another question, another answer
    assert other[0].tolist() == brute_force(recorded[:9], setup)


def test_how_near_two_texts_are():
    text = prose(3, 80)
    same, near, far = (compare(*fold_texts([text, other])) for other in (text, worn(text, 0.02, 1), prose(4, 80)))
    assert same == {"hamming": 0, "shared": 1.0}
    assert near["hamming"] < far["hamming"]
    assert far["shared"] < 0.6 < near["shared"] < 1


def test_wrong_input(tmp_path):
    setup = NearDuplicates()
    write_records(tmp_path / "r.npy", [sketched(families(1, 5), setup)], setup)
    find_near_duplicates([tmp_path / "r.npy"], setup, tmp_path / "index")
    with pytest.raises(UserError, match="other settings"):
        find_near_duplicates([tmp_path / "r.npy"], NearDuplicates(distance=3), tmp_path / "n", index=tmp_path / "index")
    with pytest.raises(MachineError, match="permutations"):
        find_near_duplicates([tmp_path / "r.npy"], NearDuplicates(permutations=128), tmp_path / "m")
    (tmp_path / "r.npy").write_bytes((tmp_path / "r.npy").read_bytes()[:300])
    with pytest.raises(MachineError, match=r"r\.npy"):
        find_near_duplicates([tmp_path / "r.npy"], setup, tmp_path / "damaged")


def test_traditional_and_simplified_copies_meet():
    one = "漢語書籍放在圖書館裡面，關於歷史與藝術的書特別受歡迎，學生們經常來這裡閱讀。" * 4
    other = "汉语书籍放在图书馆里面，关于历史与艺术的书特别受欢迎，学生们经常来这里阅读。" * 4
    signed = signing(folding(raw_batch(["a", "b"], [one, other])))["signature"].to_pylist()
    assert signed[0] == signed[1]
    first, second = sketched([one, other], NearDuplicates())["sketch"]
    assert first == second


def test_mixing_arrays_is_mixing_values():
    from xmodel.corpus.near_duplicates.sketch import mix

    values = np.array([0, 1, 2, MASK], np.uint64)
    assert mix_all(values).tolist() == [int(mix(value)) for value in values]


FLOORS = {  # recall of near duplicates by the share of characters edited, in percent
    "simhash": {"01": 0.95, "02": 0.95},
    "minhash": {"01": 0.95, "02": 0.95, "05": 0.95, "10": 0.95},
}


@pytest.mark.parametrize("mode", ["simhash", "minhash"])
def test_what_is_found_in_the_sandbox(mode, tmp_path):
    made: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    setup = NearDuplicates(mode=mode)
    for part in sandbox.PARTS:
        wanted = [d for d in sandbox.documents(part, 4800, 7, 0.25) if d.label == "clean" or "duplicate" in d.label]
        recorded = sketched([d.text for d in wanted], setup)
        write_records(tmp_path / f"{part}.npy", [recorded], setup)
        (kept,) = find_near_duplicates([tmp_path / f"{part}.npy"], setup, tmp_path / part)
        for document, first in zip(wanted, kept.tolist(), strict=True):
            made[document.label] += 1
            dropped[document.label] += first >= 0
    assert dropped["exact_duplicate"] == made["exact_duplicate"]
    recall = {label: dropped[label] / made[label] for label in made}
    for share, floor in FLOORS[mode].items():
        assert recall[f"near_duplicate_{share}"] >= floor, recall
    assert recall["clean"] <= 0.003, recall
    assert 1 - dropped["clean"] / sum(dropped.values()) >= 0.99, dropped

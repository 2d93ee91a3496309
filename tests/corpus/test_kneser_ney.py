"""Kneser-Ney models: equal to KenLM on its own files, probabilities that sum to 1, the same in any amount of memory."""

from __future__ import annotations

import gzip
import tempfile
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodel.corpus.folding import fold_texts
from xmodel.corpus.kneser_ney.arpa import read_arpa, write_arpa
from xmodel.corpus.kneser_ney.estimate import FALLBACK, Estimate, estimate
from xmodel.corpus.kneser_ney.model import LanguageModel, document_sums, load_model, score, write_model
from xmodel.corpus.kneser_ney.sort import external_sort
from xmodel.corpus.kneser_ney.units import END, UNKNOWN, Vocabulary, identify, new_vocabulary
from xmodel.errors import MachineError, UserError

SHARED = next((parent / "shared" for parent in Path(__file__).parents if (parent / "shared").is_dir()), None)
GOLDEN = {"order3": (3, [0]), "order5": (5, [0]), "order5-pruned-00111": (5, [0, 0, 1, 1, 1])}
LARGE = 1 << 24  # bytes: nothing is spilled


def golden(name: str) -> Path:
    folder = (SHARED or Path("/nowhere")) / "golden" / "kneser-ney"
    if not folder.is_dir():
        pytest.skip("no ../shared/golden/kneser-ney")
    return folder / name


def train(text: str, folder: Path, *, order: int, prune: list[int] | None = None, memory: int = LARGE):
    vocabulary = new_vocabulary()
    ids_T, _ = identify(pa.array([text]), vocabulary, kind="plain", grow=True)
    result = estimate(lambda: [ids_T], vocabulary.size, order=order, prune=prune or [0], memory=memory, folder=folder)
    return vocabulary, result


def model_of(vocabulary: Vocabulary, result: Estimate, folder: Path) -> LanguageModel:
    write_model(folder, vocabulary, result.counts, result.ngrams, units="plain")
    return load_model(folder)


def as_table(vocabulary: Vocabulary, blocks: Iterator) -> dict[tuple[str, ...], list[float]]:
    words = vocabulary.words()
    return {
        tuple(words[number] for number in row): logs
        for block in blocks
        for row, logs in zip(block.words_Gn.tolist(), block.logs_G2.tolist(), strict=True)
    }


# ── KenLM ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", GOLDEN)
def test_every_ngram_and_every_query_is_that_of_kenlm(name, tmp_path):
    order, prune = GOLDEN[name]
    vocabulary, result = train(golden("train.txt").read_text(), tmp_path, order=order, prune=prune, memory=1 << 21)
    theirs = read_arpa(golden(f"{name}.arpa.gz"))
    assert result.counts == theirs.counts
    for n in range(1, order + 1):
        ours, wanted = as_table(vocabulary, result.ngrams(n)), as_table(theirs.vocabulary, theirs.ngrams(n))
        assert ours.keys() == wanted.keys()
        assert np.abs(np.array(list(map(ours.get, wanted))) - np.array(list(wanted.values()))).max() < 1e-5

    queries = golden("queries.txt").read_text().split("\n")[:400]
    expected_Q2 = np.loadtxt(golden(f"queries.{name}.tsv"))
    scores = score(pa.array(queries), model_of(vocabulary, result, tmp_path / "model"))
    assert scores.ends_D1.tolist() == list(range(401))
    lines = np.split(scores.logs_T, np.cumsum(scores.units_L)[:-1])
    totals_Q = [np.add.accumulate(line)[-1] for line in lines]  # in float32, word by word, as KenLM adds up
    assert np.abs(totals_Q - expected_Q2[:, 0]).max() < 1e-4
    assert np.abs(scores.logs_L - expected_Q2[:, 0]).max() < 3e-4  # exact sums; the longest query has 1,000 words
    assert scores.unknown_L.tolist() == expected_Q2[:, 1].tolist()


def test_kenlm_reads_our_files_and_gives_our_scores(tmp_path):
    kenlm = pytest.importorskip("kenlm")
    queries = golden("queries.txt").read_text().split("\n")[:400]
    for order, prune in GOLDEN.values():
        vocabulary, result = train(golden("train.txt").read_text(), tmp_path, order=order, prune=prune)
        write_arpa(tmp_path / "our.arpa", vocabulary, result.counts, result.ngrams)
        theirs = kenlm.Model(str(tmp_path / "our.arpa"))
        scores = score(pa.array(queries), model_of(vocabulary, result, tmp_path / "model"))
        words = [word[0] for query in queries for word in theirs.full_scores(query)]
        assert np.abs(scores.logs_T - words).max() < 2e-6


# ── probabilities ────────────────────────────────────────────────────────────────────────────────────────────────────

WORDS = "abcdef"
LINES = st.lists(st.text(WORDS, min_size=1, max_size=12).map(" ".join), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    LINES, st.integers(1, 5), st.sampled_from([[0], [0, 0, 1], [0, 1, 1, 2], [0, 2]]), st.text(WORDS + "z", max_size=6)
)
def test_probabilities_after_any_context_sum_to_one(lines, order, prune, context):
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, result = train("\n".join(lines), Path(folder), order=order, prune=prune[:order])
        model = model_of(vocabulary, result, Path(folder) / "model")
        words = [word for word in vocabulary.words() if word not in ("<unk>", "<s>", "</s>")]
        continued = [" ".join([*context, word]) for word in [*words, "unknown"]]
        ended = score(pa.array([" ".join(context) or " "]), model)
        last = [len(context)] * len(continued)
        unigrams = as_table(vocabulary, result.ngrams(1))
        table = as_table(vocabulary, result.ngrams(min(order, 2)))
    scores = score(pa.array(continued), model)
    begins = np.cumsum(scores.units_L) - scores.units_L
    probabilities = 10.0 ** scores.logs_T[begins + last].astype(float)
    end = 10.0 ** float(ended.logs_T[-1]) if context else 0.0  # no text is an empty sentence, so at a beginning ...
    if not context:
        sentence = table.get(("<s>", "</s>")) if order > 1 else table[("</s>",)]
        end = 10 ** (sentence[0] if sentence else unigrams[("<s>",)][1] + unigrams[("</s>",)][0])  # ... look it up
    assert probabilities.sum() + end == pytest.approx(1, abs=2e-6)


def test_a_text_by_hand(tmp_path):
    """Bigrams of `a b a b a` with the fallback discounts; the counts are adjusted as Chen and Goodman's section 4.1."""
    vocabulary, result = train("a b a b a", tmp_path, order=2)
    assert result.discounts == [FALLBACK] * 2
    # Words before a: <s>, b; before b: a; before </s>: a. Four in all, a loses 1.0 (D2), b and </s> lose 0.5 each.
    uniform = (1.0 + 0.5 + 0.5) / 4 / 4  # over <unk>, </s>, a, b
    unigrams = as_table(vocabulary, result.ngrams(1))
    assert 10 ** unigrams[("a",)][0] == pytest.approx((2 - 1) / 4 + uniform, rel=1e-5)
    assert 10 ** unigrams[("<unk>",)][0] == pytest.approx(uniform, rel=1e-5)
    # After a: b twice and </s> once; after b: a twice.
    backoff = (1.0 + 0.5) / 3
    assert 10 ** unigrams[("a",)][1] == pytest.approx(backoff, rel=1e-5)
    bigrams = as_table(vocabulary, result.ngrams(2))
    assert bigrams.keys() == {("<s>", "a"), ("a", "b"), ("b", "a"), ("a", "</s>")}
    assert 10 ** bigrams[("a", "b")][0] == pytest.approx((2 - 1) / 3 + backoff * (0.5 / 4 + uniform), rel=1e-5)


# ── sorting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(0, 12_000), st.sampled_from([3, 13, 64, 70, 128]), st.booleans(),
    st.sampled_from([1, 20_000, 200_000, LARGE]),
)  # fmt: skip
def test_the_external_sort_sorts_in_any_amount_of_memory(seed, rows, bits, add_up, memory):
    random = np.random.default_rng(seed)
    records = random.integers(0, 2**64, (rows, 3), np.uint64, endpoint=False)
    records[:, 2] = random.integers(0, 9, rows)
    records[:, 0] &= np.uint64((1 << max(bits - 64, 0)) - 1)
    records[:, 1] &= np.uint64((1 << min(bits, 64)) - 1)
    before = records.copy()
    with tempfile.TemporaryDirectory() as folder:
        blocks = np.array_split(records, 3)
        found = list(external_sort(blocks, 3, bits=bits, memory=memory, folder=Path(folder), add_up=add_up))
        assert not list(Path(folder).iterdir())
    result = np.concatenate([np.zeros((0, 3), np.uint64), *found])
    assert np.array_equal(records, before)
    if add_up:
        keys, places = np.unique(records[:, :2], axis=0, return_inverse=True)
        assert np.array_equal(result[:, :2], keys)
        assert np.array_equal(result[:, 2], np.bincount(places.ravel(), before[:, 2], len(keys)).astype(np.uint64))
    else:
        same = [array[np.lexsort(array.T[[2, 1, 0]])] for array in (result, records)]
        assert np.array_equal(*same)
        assert np.array_equal(result[:, :2], same[1][:, :2])


def test_the_model_does_not_depend_on_the_memory(tmp_path):
    random = np.random.default_rng(0)
    text = "\n".join(" ".join(map(str, random.zipf(1.3, 30) % 5000)) for _ in range(700))
    made = {}
    for memory in (LARGE, 150_000, 20_000):
        (tmp_path / str(memory)).mkdir()
        vocabulary, result = train(text, tmp_path / str(memory), order=4, prune=[0, 0, 1], memory=memory)
        made[memory] = {path.name: path.read_bytes() for path in (tmp_path / str(memory)).iterdir()}
        write_arpa(tmp_path / f"{memory}.arpa.gz", vocabulary, result.counts, result.ngrams)
        made[memory]["arpa"] = (tmp_path / f"{memory}.arpa.gz").read_bytes()
    assert made[LARGE].keys() == {"order-2", "order-3", "order-4", "arpa"}  # all that is left in the folder
    assert made[LARGE] == made[150_000] == made[20_000]


# ── units ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def units(text: str) -> list[list[str]]:
    """The units of a text, line by line, by the kernel and a vocabulary that grows."""
    vocabulary = new_vocabulary()
    ids_T, ends_D1 = identify(pa.array(["x\ny", text, "z"])[1:2], vocabulary, grow=True)
    assert ends_D1.tolist() == [0, len(ids_T)]
    again_T, _ = identify(pa.array([text]), vocabulary)
    assert ids_T.tolist() == again_T.tolist()
    words = vocabulary.words()
    lines: list[list[str]] = [[]]
    for number in ids_T.tolist():
        lines[-1].append(words[number])
        if number == END:
            lines.append([])
    assert lines.pop() == []
    return lines


def test_english_goes_by_word_and_chinese_by_character():
    assert units("The  Cats’ 2nd, (x)\r\n\n \n第3章：RNN模型𠀀\u200b。") == [
        ["the", "cats", "’", "0nd", ",", "(", "x", ")", "</s>"],
        ["第", "0", "章", ":", "rnn", "模", "型", "𠀀", "。", "</s>"],
    ]
    assert units("a" * 70) == [["a" * 32, "a" * 32, "a" * 6, "</s>"]]
    assert units("</s> <unk>") == [["<", "/", "s", ">", "<", "unk", ">", "</s>"]]
    assert units(" \n\n") == []


@settings(max_examples=150, deadline=None)
@given(st.text(st.one_of(st.characters(max_codepoint=0x7F), st.characters(exclude_categories=["Cs"])), max_size=60))
def test_units_are_those_of_the_folded_text(text):
    def single(point: str) -> bool:
        name = unicodedata.name(point, "")
        prose = unicodedata.category(point)[0] in "LMN" and ord(point) < 0x10000
        return not prose or name.startswith("CJK") or "KATAKANA" in name or "HIRAGANA" in name or point in "〇々"

    expected = []
    for line in text.split("\n"):
        found: list[str] = []
        open_run = False
        for point in fold_texts([line])[0].decode():
            point = "0" if point in "0123456789" else point
            if point.isspace():
                open_run = False
            elif single(point) or not open_run or len((found[-1] + point).encode()) > 32:
                found.append(point)
                open_run = not single(point)
            else:
                found[-1] += point
        expected += [[*found, "</s>"]] if found else []
    assert units(text) == expected


def test_a_vocabulary_grows_to_any_size_and_knows_what_it_does_not_hold():
    vocabulary = new_vocabulary()
    words = [f"word{number}{'x' * (number % 50)}" for number in range(20_000)]
    ids_T, _ = identify(pa.array([" ".join(words)]), vocabulary, kind="plain", grow=True)
    assert ids_T.tolist() == [*range(3, 20_003), END]
    assert vocabulary.words() == ["<unk>", "<s>", "</s>", *words]
    asked = identify(pa.array(["word7xxxxxxx nowhere <s>", ""]), vocabulary, kind="plain")[0]
    assert asked.tolist() == [10, UNKNOWN, UNKNOWN, END]
    assert vocabulary.size == 20_003


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_arpa_file_read_back_is_the_same_model(tmp_path):
    text = "the cat sat .\nthe dog sat .\n中 文 也 行\n" * 3
    vocabulary, result = train(text, tmp_path, order=3, prune=[0, 0, 3])
    ours = model_of(vocabulary, result, tmp_path / "ours")
    for name in ("plain.arpa", "zipped.arpa.gz"):
        write_arpa(tmp_path / name, vocabulary, result.counts, result.ngrams)
        arpa = read_arpa(tmp_path / name)
        assert arpa.counts == result.counts
        write_model(tmp_path / "theirs", arpa.vocabulary, arpa.counts, arpa.ngrams, units="plain")
        queries = pa.array(["the cat sat .", "dog dog 中 文", "sat", ""])
        theirs = score(queries, load_model(tmp_path / "theirs"))
        assert np.abs(score(queries, ours).logs_T - theirs.logs_T).max() < 1e-6
    assert gzip.open(tmp_path / "zipped.arpa.gz").read() == (tmp_path / "plain.arpa").read_bytes()


ARPA = "\\data\\\nngram 1=4\nngram 2=2\n\n\\1-grams:\n-1\t<unk>\n-99\t<s>\t-0.5\n-1e0\t</s>\n-.25\ta\t-3E-1\n\n\\2-grams:\n-0.1\t<s> a\n-2\ta </s>\n\n\\end\\\n"


def test_an_arpa_file_as_other_programs_write_it(tmp_path):
    (tmp_path / "x.arpa").write_text(ARPA.replace("\n", "\r\n").replace("\t", " "))
    arpa = read_arpa(tmp_path / "x.arpa")
    write_model(tmp_path / "x", arpa.vocabulary, arpa.counts, arpa.ngrams, units="plain")
    scores = score(pa.array(["a", "a a", "b"]), load_model(tmp_path / "x"))
    assert scores.logs_T == pytest.approx([-0.1, -2, -0.1, -0.55, -2, -1.5, -1])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "\\date\\", "line 1: .*does not begin with"),
        ("ngram 2=2", "ngram 3=2", "expected `ngram 2=...`"),
        ("ngram 1=4", "ngram 1=5", "4 of 5 1-grams"),
        ("ngram 2=2", "ngram 2=1", "more n-grams than it states"),
        ("-0.1\t", "x\t", r"line 12: does not begin with a number"),
        ("<s> a", "<s> b", "line 12: has a word that is not among the 1-grams"),
        ("a </s>", "a", "line 13: has too few"),
        ("a </s>", "a </s> a", "line 13: has too few or too many"),
        ("\\end\\\n", "", "without"),
        ("a </s>", "<s> a", "stands there twice"),
    ],
)
def test_what_is_wrong_in_an_arpa_file_is_said_with_its_line(old, new, message, tmp_path):
    assert old in ARPA
    (tmp_path / "x.arpa").write_text(ARPA.replace(old, new))
    with pytest.raises(UserError, match=message):
        arpa = read_arpa(tmp_path / "x.arpa")
        write_model(tmp_path / "x", arpa.vocabulary, arpa.counts, arpa.ngrams, units="plain")


def test_a_missing_or_cut_arpa_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_arpa(tmp_path / "none.arpa")
    (tmp_path / "x.arpa.gz").write_bytes(gzip.compress(ARPA.encode())[:-20])
    with pytest.raises(UserError, match="cannot be read"):
        read_arpa(tmp_path / "x.arpa.gz")


def test_a_damaged_model_is_refused(tmp_path):
    vocabulary, result = train("a b c", tmp_path, order=2)
    model_of(vocabulary, result, tmp_path / "model")
    data = bytearray((tmp_path / "model" / "ngrams.npy").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model" / "ngrams.npy").write_bytes(data)
    with pytest.raises(MachineError, match=r"ngrams\.npy: missing or damaged"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("", {}, "no words"),
        ("a <s> b", {}, "reserved word"),
        ("a", {"order": 6}, "between 1 and 5"),
        ("a", {"prune": [1]}, "begins with 0"),
        ("a", {"prune": [0, 2, 1]}, "never falls"),
    ],
)
def test_what_cannot_be_estimated(text, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(text, tmp_path, **{"order": 3, **changes})


def test_documents_and_paragraphs(tmp_path):
    vocabulary, result = train("a b\nb a", tmp_path, order=2)
    model = model_of(vocabulary, result, tmp_path / "model")
    scores = score(pa.array(["a b\n\nb c", "", "a"]), model)
    assert scores.units_L.tolist() == [3, 3, 2]
    assert scores.unknown_L.tolist() == [0, 1, 0]
    assert document_sums(scores.units_L, scores.ends_D1).tolist() == [6, 0, 2]
    assert scores.logs_L[2] == pytest.approx(score(pa.array(["a"]), model).logs_T.sum())
    empty = score(pa.array([], pa.string()), replace(model))
    assert len(empty.logs_L) == 0
    assert empty.ends_D1.tolist() == [0]

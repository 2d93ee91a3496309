"""The documents of the sandbox corpus: deterministic, of the right size, honest about their dirt."""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import io
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from xmodel.corpus import sandbox
from xmodel.corpus.sandbox import DIRT_CLASSES, PARTS, documents, question_sets
from xmodel.corpus.sandbox.compose import clean
from xmodel.corpus.sandbox.draw import Draw
from xmodel.corpus.sandbox.snippets import PROGRAMS

_DIGEST = """
import hashlib
from xmodel.corpus.sandbox import PARTS, documents, question_sets
text = repr([list(documents(part, 120, 7, 0.3)) for part in PARTS]) + repr(question_sets(7, 12, 4))
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_is_a_function_of_the_seed_alone():
    """Not of PYTHONHASHSEED, nor of anything that was drawn before in the same process."""
    list(documents("en", 10, 3))
    text = repr([list(documents(part, 120, 7, 0.3)) for part in PARTS]) + repr(question_sets(7, 12, 4))
    expected = hashlib.sha256(text.encode()).hexdigest()
    source = str(Path(sandbox.__file__).parents[3])
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": source}
        assert (
            subprocess.run(
                [sys.executable, "-c", _DIGEST], env=environment, capture_output=True, text=True, check=True
            ).stdout.strip()
            == expected
        )


@pytest.mark.parametrize("part", PARTS)
def test_a_document_depends_on_its_number_only(part):
    longer = list(documents(part, 300, 5, 0.2))
    assert list(documents(part, 200, 5, 0.2)) == longer[:200]
    assert list(islice(clean(part, 5, start=250), 50)) == [document.text for document in documents(part, 300, 5)][250:]
    pure = [document.text for document in documents(part, 300, 5)]
    assert all(document.text == pure[i] for i, document in enumerate(longer) if document.label == "clean")
    assert pure[:50] != [document.text for document in documents(part, 50, 6)]


@pytest.mark.parametrize("part", PARTS)
def test_clean_documents_are_well_formed(part):
    texts = [document.text for document in documents(part, 4000, 1)]
    assert all(200 <= len(text) <= 1200 for text in texts)
    assert len(set(texts)) == len(texts)
    assert not any(re.search(r"\{\w*\}|  \S.*  |None", text.replace("    ", "")) for text in texts)
    han = [len(re.findall(r"[\u4e00-\u9fff]", text)) / len(text) for text in texts]
    if part == "en":
        assert max(han) == 0
        assert all(text.isascii() for text in texts)
        assert not any(
            re.search(r"\b[aA] [aeioAEIO]\w", text)
            for text in texts
            if "Python" not in text and "code" not in text and "program" not in text
        )
    if part == "zh":
        prose = [
            (text, share)
            for text, share in zip(texts, han, strict=True)
            if "Python" not in text and "代码" not in text and "程序" not in text
        ]
        assert min(share for _, share in prose) > 0.3
        assert not any(re.search(r"[,?!;]", text) for text, _ in prose)


def test_few_lines_of_a_document_repeat():
    for part in PARTS:
        for document in documents(part, 2000, 2):
            lines = [line for line in document.text.splitlines() if line]
            assert 1 - len(set(lines)) / len(lines) < 0.45, document.text


def test_dirt_comes_at_its_rates():
    assert sum(dirt.share for dirt in DIRT_CLASSES.values()) == 100
    labels = Counter(document.label for document in documents("en", 5000, 0, 0.2))
    assert labels["clean"] == 4000
    assert {name: labels[name] for name in DIRT_CLASSES} == {
        name: 10 * dirt.share for name, dirt in DIRT_CLASSES.items()
    }
    assert {document.label for document in documents("zh", 500, 0)} == {"clean"}


@pytest.mark.parametrize("part", PARTS)
def test_copies_name_their_origin(part):
    earlier = {}
    for document in documents(part, 800, 4, 0.25):
        if document.label == "exact_duplicate":
            assert document.text == earlier[document.origin].text
        elif document.label.startswith("near_duplicate"):
            original = earlier[document.origin].text
            share = int(document.label[-2:]) / 100
            kept = sum(
                block.size
                for block in difflib.SequenceMatcher(
                    None, original, document.text, autojunk=False
                ).get_matching_blocks()
            )
            assert document.text != original
            assert 0.4 * share < 1 - kept / len(original) < 2 * share + 0.01
        else:
            assert document.origin == ""
        if document.label == "clean":
            earlier[document.id] = document


@pytest.mark.parametrize("part", PARTS)
def test_dirt_is_what_its_label_says(part):
    solved = [
        item["prompt"] + item["choices"][item["answer"]]
        for items in question_sets(4).values()
        for item in items
        if item["split"] == "test"
    ]
    found = {label: [] for label in DIRT_CLASSES}
    for document in documents(part, 3000, 4, 0.25):
        if document.label != "clean":
            found[document.label].append(document.text)
    assert all(any(answer in text for answer in solved) for text in found["leaked_question"])
    assert all(len(text) < 30 for text in found["too_short"])
    assert all(sum(c.isalnum() for c in text) < 0.05 * len(text) for text in found["symbol_soup"])
    assert all(len(set(text.splitlines())) <= 2 < 6 <= len(text.splitlines()) for text in found["repeated_lines"])
    assert not any(re.search(r"[.。!！?？]", text) for text in found["list_without_sentences"])
    assert all(re.search(r"[\ufffd\u0080-\u00ff]{2}|é|…|[\u9200-\u9fff]", text) for text in found["mojibake"])
    own = {"en": r"\bthe\b.*\b(is|a)\b", "zh": r"[的是]", "parallel": r"English:"}[part]
    assert not any(re.search(own, text) for text in found["wrong_language"])


def test_programs_print_what_the_text_says():
    draw = Draw("train", "en")
    for i, program in enumerate(PROGRAMS):
        for j in range(40):
            draw.restart(0, i, j)
            code, output = program(draw)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, {})
            assert printed.getvalue().rstrip("\n") == output, code


def test_needs_the_standard_library_only():
    for path in Path(sandbox.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] in sys.stdlib_module_names for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                module = node.module or ""
                own = module.startswith("xmodel.corpus.sandbox")
                assert own or module.split(".")[0] in sys.stdlib_module_names

"""Whole characters, stop texts wherever tokens cut them, and tokens with the text that they belong to."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from xmodel.inference.text import AnswerText

LETTERS = st.text(alphabet="ab路𝄞\n", max_size=12)


def plain(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: character by character, until the text ends with a stop."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def near(text: str) -> st.SearchStrategy[str]:
    """Stops that stand in the text, or begin as something in it does, and any others."""
    parts = [text[a:b] for a in range(len(text)) for b in range(a + 1, min(a + 5, len(text)) + 1)]
    found = st.sampled_from(parts) if parts else st.just("x")
    return st.one_of(found, found.map(lambda part: part + "z"), LETTERS.filter(bool))


@example(("abc", ["bc", "ab"]), [])  # in one token: the one that is complete first
@example(("ab路ab", ["ab路ab"]), [6])  # all but its last character has come
@given(
    LETTERS.flatmap(lambda text: st.tuples(st.just(text), st.lists(near(text), max_size=3))),
    st.lists(st.integers(0, 40)),
)
def test_the_definition_however_tokens_cut_the_bytes(asked: tuple[str, list[str]], cuts: list[int]) -> None:
    text, stops = asked
    raw = text.encode()
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    pieces = [raw[a:b] for a, b in pairwise(edges)]
    answer = AnswerText(pieces, stops, keep_tokens=True)
    given_: list[str] = []
    tokens = []
    for number in range(len(pieces)):
        answer.push(number)
        new, with_it = answer.take(last=answer.stopped)
        given_.append(new)
        tokens += with_it
        shown = b"".join(token.text for token in tokens)
        assert shown.startswith("".join(given_).encode())
        if answer.stopped:
            break
        # nothing is held back but what may begin a stop or is half a character
        held = raw[: edges[number + 1]].decode(errors="ignore")[len("".join(given_)) :]
        assert not held or any(stop.startswith(held) for stop in stops)
    answer.finish()
    new, with_it = answer.take(last=True)
    expected, stopped = plain(text, stops)
    assert ("".join(given_) + new, answer.stopped) == (expected, stopped)
    tokens += with_it
    ids = [token.id for token in tokens]
    assert ids == list(range(len(ids)))
    if not stopped:
        assert len(ids) == len(pieces)
    elif ids:  # the last one begins in the text
        assert edges[ids[-1]] < len(expected.encode())


def test_a_character_that_stays_incomplete() -> None:
    answer = AnswerText(["路".encode()[:2], b"a"])
    answer.push(0)
    assert answer.take()[0] == ""
    answer.finish()
    assert answer.take(last=True)[0] == "\ufffd"
    answer = AnswerText([b"a"])
    answer.push(7)  # an id of the model that the tokenizer does not have
    assert answer.take()[0] == ""

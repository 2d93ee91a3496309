from __future__ import annotations

import gc
import weakref

import pytest

from xmodel.pretrain.garbage import garbage_held_back


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def test_no_collection_starts_by_itself_but_one_that_is_asked_for_does_its_work() -> None:
    with garbage_held_back() as collect:
        assert not gc.isenabled()
        assert gc.get_freeze_count() > 0
        seen = weakref.ref(Cycle())
        for _ in range(5000):
            Cycle()  # enough for many collections, were they on
        assert seen() is not None
        assert collect() > 0
        assert seen() is None
    assert gc.isenabled()


def test_all_is_as_before_whatever_happens() -> None:
    before = gc.get_freeze_count()
    with pytest.raises(RuntimeError), garbage_held_back():
        raise RuntimeError
    assert gc.isenabled()
    assert gc.get_freeze_count() <= before
    gc.disable()
    try:
        with garbage_held_back():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()

"""How a setting is written: a dataclass field with its documentation and bounds."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
    default: Any, doc: str, *, least: float | None = None, most: float | None = None, identity: bool = True
) -> Any:
    """A dataclass field with its documentation and inclusive bounds.

    Args:
        default: the value when the recipe is silent; a list or dataclass type is made anew for each recipe.
        doc: one line, in the reader's words, with the unit.
        least, most: inclusive bounds for numbers.
        identity: False for settings that change how a run is carried out, not what comes out of it (logging,
            retention, device, ...): they may be changed on resume and do not enter the stage's fingerprint.
    """
    metadata = {"doc": doc, "least": least, "most": most, "identity": identity}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)

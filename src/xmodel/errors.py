"""The error tree: what went wrong decides the exit code, never a traceback for a user's mistake.

| class            | exit code | meaning                                              |
|------------------|-----------|------------------------------------------------------|
| `UserError`      | 2         | a mistake in a recipe, a command or the input         |
| `MachineError`   | 1         | the machine failed: disk full, a damaged file, a lock |
| `Interrupted`    | 75        | asked to stop; state is saved, the same command goes on |
"""

from __future__ import annotations


class XmodelError(Exception):
    """Base of every error whose message is meant for the person at the keyboard."""

    exit_code = 1


class UserError(XmodelError):
    """A mistake that the user can mend. The message says what is wrong, where, and what would be right."""

    exit_code = 2


class MachineError(XmodelError):
    """A fault of the machine, not of the recipe: the same command works once the cause is mended."""

    exit_code = 1


class Interrupted(XmodelError):
    """The process was asked to stop and has saved its state (sysexits' EX_TEMPFAIL: try again later)."""

    exit_code = 75

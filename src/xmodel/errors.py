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


class Unreachable(MachineError):
    """No answer from the other side of a network: asking for more would only wait again."""


class Interrupted(XmodelError):
    """The process was asked to stop and has saved its state (sysexits' EX_TEMPFAIL: try again later)."""

    exit_code = 75


def hub_fault(error: BaseException) -> XmodelError | None:
    """What an error of Hugging Face's client libraries means, in words for a person; None where it is of another kind.

    A UserError: the hub does not have it, or not for this user. A MachineError: it could not answer; Unreachable: it
    could not be asked. These libraries wrap their errors in one another, in other ways from version to version, so the
    whole chain is looked at, by names and by the hub's status.
    """
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) and before not in chain:
        chain.append(before)
    names = {kind.__name__ for each in chain for kind in type(each).__mro__}
    said = " ".join(map(str, chain))
    status = next((code for each in chain if (code := getattr(getattr(each, "response", None), "status_code", 0))), 0)
    if "OfflineModeIsEnabled" in names or "OfflineMode" in said or "Offline mode" in said:
        return Unreachable("HF_HUB_OFFLINE or HF_DATASETS_OFFLINE forbids asking the hub")
    if "HFValidationError" in names:
        return UserError("a name on the hub is OWNER/NAME")
    if "RevisionNotFoundError" in names:
        return UserError("the hub has it, but not that revision")
    if {"RepositoryNotFoundError", "DatasetNotFoundError"} & names or status in (401, 403, 404):
        return UserError(
            "the hub does not have it, or not for you (where it is private or gated: `hf auth login`, or HF_TOKEN)"
        )
    if status:
        return MachineError(f"the hub answered {status}")
    if any("Timeout" in name for name in (*names, said)):
        return Unreachable("the hub did not answer in time")
    if any("Connect" in name for name in names):  # ConnectionError, ConnectError ...
        return Unreachable("the hub cannot be reached")
    return None


def not_from_hub(name: str, error: Exception) -> XmodelError:
    """The error to raise where a name is nothing here and the hub did not give it either; kinds as `hub_fault`'s."""
    fault = hub_fault(error)
    if fault is None:  # each version of its client raises others
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fault = MachineError(f"the hub could not be asked for it ({reason})")
    return type(fault)(f"{name}: no such file or folder here, and {fault}")

"""Sending an exported model to the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from xmodel.errors import MachineError, UserError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_push(repository: str) -> None:
    """Raise UserError, before any work is done, where nothing could be sent: a bad name, or no token."""
    import huggingface_hub

    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"--push {repository}: not OWNER/NAME")
    if not huggingface_hub.get_token():
        raise UserError(f"--push {repository}: no token of the hub; `hf auth login` keeps one, or set HF_TOKEN")


def push(repository: str, files: Mapping[str, Path | bytes], *, public: bool, message: str) -> str:
    """Send files to a model repository, which is made where there is none, in one commit.

    Args:
        repository: OWNER/NAME.
        files: what stands there under each name: a file of this machine, or its content.
        public: of a repository that is made; one that exists stays as it is.

    Returns:
        Where it can be looked at.

    Raises:
        UserError: the hub refuses: no such owner, or a token that may not write.
        MachineError: the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi(library_name="xmodel")
    operations = [huggingface_hub.CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        api.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        api.create_commit(repository, operations, commit_message=message, repo_type="model")
    except errors.HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        said = (str(error).strip() or type(error).__name__).splitlines()[-1]
        kind = UserError if 400 <= status < 500 else MachineError
        raise kind(f"--push {repository}: the hub answered {status or 'with an error'}: {said}") from None
    except Exception as error:
        # Offline mode, or no network: the errors of its HTTP client, which differs from version to version.
        if not isinstance(error, OSError) and "http" not in type(error).__module__:
            raise
        raise MachineError(f"--push {repository}: the hub cannot be reached ({error})") from None
    return f"{huggingface_hub.constants.ENDPOINT}/{repository}"

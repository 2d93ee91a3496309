"""What a request can be refused with, in the shape that OpenAI's clients read."""

from __future__ import annotations

import json
from typing import Any

# The class of error that a client is told, by status; 4xx that are not here are mistakes in the request.
KINDS = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        message: one line that says what is wrong and what would be right.
        param: the field of the request that is at fault, None when none is.
        code: a word that programs can compare.
        headers: of the response, besides the usual ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> bytes:
        """`{"error": {"message", "type", "param", "code"}}`."""
        kind = "server_error" if self.status >= 500 else KINDS.get(self.status, "invalid_request_error")
        return to_json({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8. A lone surrogate, which a request may hold in a name, becomes a question mark."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

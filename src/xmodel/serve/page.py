"""The page at `/`: its parts as one file, and the policy under which a browser runs it."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

PART = re.compile(r'<link rel="stylesheet" href="([\w.]+)">|<script src="([\w.]+)"></script>')
# Only the page's own scripts and styles count, and it talks to its own server and to nobody else.
POLICY = "default-src 'none'; script-src {script}; style-src {style}; img-src data:; connect-src 'self'"
POLICY += "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def page() -> tuple[bytes, str]:
    """The page as UTF-8, and its Content-Security-Policy."""
    folder = resources.files("xmodel.serve")
    hashes: dict[str, list[str]] = {"script": [], "style": []}

    def inline(found: re.Match[str]) -> str:
        kind, name = ("style", found[1]) if found[1] else ("script", found[2])
        text = "\n" + folder.joinpath(name).read_text(encoding="utf-8")
        hashes[kind].append(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
        return f"<{kind}>{text}</{kind}>"

    html = PART.sub(inline, folder.joinpath("page.html").read_text(encoding="utf-8"))
    return html.encode(), POLICY.format(**{kind: " ".join(found) for kind, found in hashes.items()})

"""One self-contained HTML page that shows a run, made from the files of its run directory alone."""

from __future__ import annotations

from xmodel.report.page import build_report

__all__ = ["build_report"]

"""The command line: main.py has the commands, corpus.py those of `xmodel corpus`, common.py what they share."""

from xmodel.cli.main import cli, main

__all__ = ["cli", "main"]

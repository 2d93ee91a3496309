"""The command line: main.py has the commands, corpus.py and tokenizer.py those of `xmodel corpus` and
`xmodel tokenizer`, common.py what they share."""

from xmodel.cli.main import cli, main

__all__ = ["cli", "main"]

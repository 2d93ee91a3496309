"""Xmodel-LM: make a compact bilingual (Chinese/English) language model from scratch, and know how good it is."""

__version__ = "0.1.0"

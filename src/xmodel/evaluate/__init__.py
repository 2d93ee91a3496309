"""Scores: held-out loss, multiple choice, translation; each with its standard error, and chance beside it."""

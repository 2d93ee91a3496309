"""Text out of a model: sampling over a key/value cache."""

"""Checkpoints that others wrote, made into the model folder and the tokenizer folder of a run."""

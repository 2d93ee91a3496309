"""Models of similar size side by side on one machine: memory, prefill, decode, time to first token, training."""

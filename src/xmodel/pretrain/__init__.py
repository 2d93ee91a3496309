"""Pretraining: `loop` (the step), `optim`, `schedule`, `parallel`, `checkpoint`."""

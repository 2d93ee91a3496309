"""The smallest recipe that goes through every stage, and the command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

TINY = """\
name: tiny
seed: 3
corpus:
  dirt: 0.15
  sources:
    - {name: world-en, reader: sandbox, paths: [en], language: en, weight: 0.4, documents: 240}
    - {name: world-zh, reader: sandbox, paths: [zh], language: zh, weight: 0.4, documents: 240}
    - {name: world-parallel, reader: sandbox, paths: [parallel], weight: 0.2, documents: 120}
  holdout: 0.05
tokenizer: {vocab_size: 1500, sample_bytes: 200k}
model: {layers: 2, heads: 4, kv_heads: 2, hidden: 32, ffn: 64, context_length: 64}
pretrain:
  steps: 40
  global_batch: 4
  micro_batch: 2
  peak_lr: 3e-3
  final_lr: 3e-4
  warmup_steps: 5
  eval_every: 20
  eval_tokens: 2k
  save_every: 8
  log_every: 1
  precision: fp32
  compile: "off"
  device: cpu
evaluate: {limit: 8, limit_during: 4, shots: [0, 1]}
report: {sample_tokens: 8}
"""


def xmodel(*arguments: object, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "xmodel", *map(str, arguments)]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, check=False)

"""llama.cpp on one GGUF file; decode.py starts it in the environment that has llama-cpp-python.

    python decode_worker.py '{"file": ..., "threads": 2, "prompt": [ids], "new": 24, "rows": 16}'

Says its version, then answers every line with a number of rows by a list of seconds: when the first token of all rows
was there (each row's prompt by itself, as a request comes), and when each following one was.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import llama_cpp as api  # pyright: ignore[reportMissingImports]
import numpy as np


def main() -> None:
    settings: dict[str, Any] = json.loads(sys.argv[1])
    prompt, new, rows = settings["prompt"], settings["new"], settings["rows"]
    api.llama_backend_init()
    api.llama_log_set(SILENT, None)
    model = api.llama_model_load_from_file(settings["file"].encode(), api.llama_model_default_params())
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    wanted = api.llama_context_default_params()
    wanted.n_ctx = rows * (len(prompt) + new)
    wanted.n_batch = wanted.n_ubatch = max(512, len(prompt), rows)
    wanted.n_seq_max = rows
    wanted.n_threads = wanted.n_threads_batch = settings["threads"]
    context = api.llama_init_from_model(model, wanted)
    batch = api.llama_batch_init(max(len(prompt), rows), 0, 1)

    def run(tokens: list[tuple[int, int, int, bool]]) -> None:
        """Tokens as (id, position, row, whether its logits are wanted)."""
        batch.n_tokens = len(tokens)
        for i, (token, position, row, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        if api.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")

    def best(place: int) -> int:
        return int(np.ctypeslib.as_array(api.llama_get_logits_ith(context, place), (vocabulary,)).argmax())

    print(json.dumps(api.__version__), flush=True)
    for line in sys.stdin:
        count = int(line)
        api.llama_memory_clear(api.llama_get_memory(context), True)
        began, last = time.perf_counter(), []
        for row in range(count):
            run([(token, i, row, i == len(prompt) - 1) for i, token in enumerate(prompt)])
            last.append(best(len(prompt) - 1))
        stamps = [time.perf_counter() - began]
        for step in range(new - 1):
            run([(token, len(prompt) + step, row, True) for row, token in enumerate(last)])
            last = [best(row) for row in range(count)]
            stamps.append(time.perf_counter() - began)
        print(json.dumps(stamps), flush=True)


SILENT = api.llama_log_callback(lambda level, text, data: None)

if __name__ == "__main__":
    main()

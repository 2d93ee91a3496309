"""What llama.cpp makes of GGUF files; gguf_check.py starts it in the environment that has llama-cpp-python.

    python gguf_check_worker.py TASKS.json OUT.npz

TASKS: a list of {"file", "texts", "sequences", "prompts", "tokens"}: for each file the ids of `texts`, the bytes of
every token, the logits of `sequences` of ids and `tokens` greedy ids after each of `prompts`. Keys and values of the
cache are float32, so that what differs is the weights' format.
"""

from __future__ import annotations

import json
import sys
import time

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np
from llama_cpp import Llama  # pyright: ignore[reportMissingImports]


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as stream:
        tasks = json.load(stream)
    found: dict[str, np.ndarray] = {"version": np.array(llama_cpp.__version__)}
    for number, task in enumerate(tasks):
        began = time.perf_counter()
        needed = max(
            [len(ids) for ids in task["sequences"]] + [len(ids) + task["tokens"] for ids in task["prompts"]] + [8]
        )
        model = Llama(
            task["file"],
            n_ctx=needed,
            n_batch=needed,
            n_threads=2,
            logits_all=True,
            type_k=llama_cpp.GGML_TYPE_F32,
            type_v=llama_cpp.GGML_TYPE_F32,
            verbose=False,
        )
        found[f"{number}/load_seconds"] = np.array(time.perf_counter() - began)
        for at, text in enumerate(task["texts"]):
            ids = model.tokenize(text.encode(), add_bos=False, special=False)
            found[f"{number}/ids/{at}"] = np.array(ids, np.int32)
        found[f"{number}/with_bos"] = np.array(model.tokenize(b"a", add_bos=True, special=False), np.int32)
        found[f"{number}/parsed"] = np.array(model.tokenize(b"<s>a", add_bos=False, special=True), np.int32)
        pieces = [model.detokenize([i]).hex() for i in range(model.n_vocab())]
        found[f"{number}/pieces"] = np.array(pieces)
        for at, ids in enumerate(task["sequences"]):
            model.reset()
            model.eval(ids)
            found[f"{number}/logits/{at}"] = np.array(model.scores[: len(ids)], np.float32)
        for at, ids in enumerate(task["prompts"]):
            model.reset()
            model.eval(ids)
            new: list[int] = []
            for _ in range(task["tokens"]):
                new.append(int(np.argmax(model.scores[model.n_tokens - 1])))
                if len(new) < task["tokens"]:
                    model.eval(new[-1:])
            found[f"{number}/greedy/{at}"] = np.array(new, np.int32)
        model.close()
    np.savez(sys.argv[2], **found)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()

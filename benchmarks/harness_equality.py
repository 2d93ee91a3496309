"""Item by item: are our scores those of lm-evaluation-harness's own `hf` backend?

    python benchmarks/harness_equality.py --benchmarks DIR
    python benchmarks/harness_equality.py --benchmarks DIR --models llama --dtype bf16 --limit 20

Two models are made with random weights, a Llama (ours, exported) and a GPT-NeoX (transformers'), with tokenizers
trained on the rows themselves. Every task of the paper's suites whose rows are in DIR is scored twice, by both
backends, from the same requests: log-likelihoods, choices and generated texts are compared one by one. With bf16 the
harness runs in bfloat16 too, and the figures say how far two right computations differ in that format.

`--exact` also asks the hf backend with its model in float64, and with one row a batch: how far each side's
log-likelihoods are from exact arithmetic, and how far the backend is from itself with another batch size.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1")

import torch

from xmodel.console import log, table
from xmodel.evaluate.harness import SubjectLM
from xmodel.evaluate.paper import select
from xmodel.evaluate.tasks import Prepared, open_task, prepare
from xmodel.files import write_json
from xmodel.inference.subjects import open_subject

RESULTS = Path(__file__).parent / "results"
CONTEXT = 2048
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp64": "float64"}


def texts(folder: Path) -> list[str]:
    """All strings of the benchmarks' rows."""

    def strings(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
        return [text for part in parts for text in strings(part)]

    lines = [line for path in sorted(folder.rglob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    return [text for line in lines for text in strings(json.loads(line))]


def make_llama(folder: Path, corpus: Sequence[str]) -> None:
    """Ours, as `xmodel export` leaves it, with an unigram tokenizer that puts <s> before every text."""
    from xmodel.model.checkpoint_io import save_model
    from xmodel.model.transformer import Transformer
    from xmodel.recipe.settings import Model
    from xmodel.recipe.settings import Tokenizer as TokenizerSettings
    from xmodel.tokenizer.codec import Tokenizer
    from xmodel.tokenizer.train import train

    train(corpus, TokenizerSettings(vocab_size=4000, character_coverage=0.98), folder, seed=0, add_bos=True)
    shape = Model(layers=3, heads=4, kv_heads=2, hidden=96, ffn=160, context_length=CONTEXT, position_table=CONTEXT)
    shape.vocab_size, shape.init_std = 4000, 0.1
    model = Transformer(shape)
    model.init_weights(1)
    silence(model, Tokenizer.load(folder))
    save_model(model, folder)


@torch.no_grad()
def silence(model: Any, tokenizer: Any) -> None:
    """Let a random model write texts: neither bytes that are no characters, nor control tokens but the end.

    The harness looks for stop texts in the last few tokens, with control tokens spelt out. Where these begin within a
    broken character, or a stop stands in the name of a control token, it sees a stop that the text does not hold, and
    how long the batch goes on then depends on its other rows.
    """
    model.lm_head.weight[tokenizer.first_byte_id : tokenizer.first_byte_id + 256] = 0
    controls = [number for number, piece in enumerate(tokenizer.pieces) if not piece]
    model.lm_head.weight[[tokenizer.unk_id, *(number for number in controls if number != tokenizer.eos_id)]] = 0


def make_neox(folder: Path, corpus: Sequence[str]) -> None:
    """A GPT-NeoX (the shape of Pythia), with a byte-level BPE tokenizer that puts nothing before a text."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=3000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    )
    end = "<|endoftext|>"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=end, eos_token=end, unk_token=end
    ).save_pretrained(folder)
    torch.manual_seed(2)
    config = transformers.GPTNeoXConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=CONTEXT,
        initializer_range=0.1,
        bos_token_id=0,
        eos_token_id=0,
    )
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)


MODELS = {"llama": make_llama, "gpt-neox": make_neox}


def hf_backend(folder: Path, dtype: str, batch: int, context: int = CONTEXT) -> Any:
    """The harness's own backend, on a model that is loaded here."""
    import transformers
    from lm_eval.models import huggingface

    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    backend: Any = huggingface.HFLM
    return backend(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=context)


def requests_of(prepared: Prepared, limit: int | None) -> list[Any]:
    """All requests of a task, as the harness builds them."""
    task = open_task(prepared)
    found = []
    for number, doc in enumerate(task.task_docs.select(range(min(limit or len(task.task_docs), len(task.task_docs))))):
        context = task.fewshot_context(doc, num_fewshot=prepared.shots, gen_prefix=task.doc_to_prefix(doc))
        made = task.construct_requests(doc=doc, ctx=context, metadata=(prepared.name, number, 1))
        found += made if isinstance(made, list) else [made]
    return found


def compare(
    ours: SubjectLM, theirs: Any, requests: Sequence[Any], others: dict[str, Any] | None = None
) -> dict[str, Any]:
    """One task by both backends; `others` are further ones to be compared with."""
    kind = requests[0].request_type
    started = time.process_time()
    mine = getattr(ours, kind)(requests)
    middle = time.process_time()
    other = getattr(theirs, kind)(requests, disable_tqdm=True)
    seconds = {"seconds": round(middle - started, 2), "seconds_hf": round(time.process_time() - middle, 2)}
    if kind == "generate_until":
        same = sum(a == b for a, b in zip(mine, other, strict=True))
        return {"items": len(requests), "same": same, "largest_difference": None, "off": None} | seconds
    differences = [abs(a[0] - b[0]) for a, b in zip(mine, other, strict=True)]
    off = sum(difference > allowed(b[0]) for difference, b in zip(differences, other, strict=True))
    picks: dict[int, list[list[float]]] = {}
    for request, a, b in zip(requests, mine, other, strict=True):
        both = picks.setdefault(request.doc_id, [[], []])
        both[0].append(a[0])
        both[1].append(b[0])
    same = sum(a.index(max(a)) == b.index(max(b)) for a, b in picks.values())
    found = {"items": len(picks), "same": same, "largest_difference": max(differences), "off": off} | seconds
    if others:
        exact, alone = (others[name].loglikelihood(requests, disable_tqdm=True) for name in ("exact", "alone"))
        found["largest_sum"] = max(abs(each[0]) for each in exact)
        pairs = {"ours_from_exact": (mine, exact), "hf_from_exact": (other, exact), "hf_from_itself": (other, alone)}
        for name, (left, right) in pairs.items():
            found[name] = max(abs(a[0] - b[0]) for a, b in zip(left, right, strict=True))
    return found


def allowed(logprob: float) -> float:
    """1e-4 nats; of long texts, where the harness sums in float32, two units in the last place of the sum."""
    return max(1e-4, 2.4e-7 * abs(logprob))


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.2g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--benchmarks", type=Path, required=True)
    parser.add_argument("--suites", default="paper")
    parser.add_argument("--models", default="llama,gpt-neox")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--limit", type=int, help="questions a task")
    parser.add_argument("--generated", type=int, help="questions of a task that writes text")
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch of the hf backend")
    parser.add_argument("--exact", action="store_true", help="only log-likelihoods; see above")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    ready, missing = prepare(select(arguments.suites.split(",")), arguments.benchmarks)
    corpus, rows = texts(arguments.benchmarks), []
    for name in arguments.models.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            MODELS[name](folder, corpus)
            ours = SubjectLM(open_subject(str(folder), dtype=arguments.dtype, device="cpu"), fast=True)
            theirs, others = hf_backend(folder, arguments.dtype, arguments.batch), {}
            if arguments.exact:
                others = {"exact": hf_backend(folder, "fp64", 8), "alone": hf_backend(folder, arguments.dtype, 1)}
            for prepared in ready:
                ours.truncated = 0
                found = requests_of(prepared, arguments.limit)
                if found[0].request_type == "generate_until":
                    if arguments.exact:
                        continue
                    found = found[: arguments.generated]
                row = {"model": name, "task": prepared.name, "shots": prepared.shots} | compare(
                    ours, theirs, found, others
                )
                rows.append(row | {"truncated": ours.truncated})
                log(json.dumps(rows[-1]))
    headers = ["model", "task", "shots", "items", "same", "largest_difference", "off", "truncated"]
    if arguments.exact:
        headers[5:] = ["largest_difference", "largest_sum", "ours_from_exact", "hf_from_exact", "hf_from_itself"]
    print(table(headers, [[_shown(row[key]) for key in headers] for row in rows]))
    kind = "exact" if arguments.exact else "equality"
    out = arguments.out or RESULTS / f"harness-{kind}-{arguments.dtype}.json"
    settings = {
        "dtype": arguments.dtype,
        "limit": arguments.limit,
        "generated": arguments.generated,
        "context": CONTEXT,
        "hf_batch": arguments.batch,
    }
    names = ("torch", "transformers", "lm_eval", "tokenizers")
    versions = {"python": platform.python_version()} | {package: metadata.version(package) for package in names}
    write_json(out, {"settings": settings, "versions": versions, "not_there": len(missing), "rows": rows})


if __name__ == "__main__":
    main()

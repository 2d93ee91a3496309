"""Whether llama.cpp computes with our GGUF what we do: logits, greedy ids, token ids, in both languages.

    python -m venv /tmp/llama && /tmp/llama/bin/pip install llama-cpp-python==0.3.36    # builds for 15 to 25 minutes
    python benchmarks/gguf_check.py runs/quickstart --llama /tmp/llama/bin/python

The newest checkpoint of a run is written as f32, f16, bf16 and q8_0. Logits are compared with our own model's in
float32, once with the weights of the checkpoint and once with those in the file (dequantised by the gguf package): the
first says what the format costs, the second whether the file is right. Greedy ids: 64 after each prompt. A model of the
same shape with QK-norm, tied embeddings and random weights goes the same way (Qwen3 to llama.cpp).

Token ids are compared on the run's held-out documents and on texts of special kinds, for the run's tokenizer in both
ways that a unigram vocabulary can be written, and for three others of the same size trained on the run's text:
`shortest`, `bpe`, and one with the published tokenizer's settings. A token counts as different when it is not in a
longest common run with llama.cpp's.
"""

from __future__ import annotations

import argparse
import difflib
import json
import platform
import shutil
import subprocess
import tempfile
from dataclasses import replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pyarrow.parquet
import torch

from xmodel.console import table
from xmodel.corpus.mixture import sample_texts
from xmodel.export.gguf import TYPES, export_gguf
from xmodel.files import write_json
from xmodel.inference.generate import generate
from xmodel.model.checkpoint_io import load_model, save_model
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Export, Model
from xmodel.recipe.settings import Tokenizer as TokenizerSettings
from xmodel.run import Run, open_run
from xmodel.stages import checkpoint_folder
from xmodel.tokenizer.codec import Tokenizer
from xmodel.tokenizer.others import mark_encoder
from xmodel.tokenizer.train import train

WORKER = Path(__file__).parent / "gguf_check_worker.py"
GREEDY = 64
DOCUMENTS, CHARACTERS = 400, 4000  # held-out documents of a language, and of each
TRAINED_BYTES = 4_000_000
KINDS = {
    "newlines and tabs": ["one\ntwo\n\n\nthree", "\n", "\t\tx\n\ty\r\nz", "第一行\n第二行\n\n"],
    "runs of spaces": ["a" + " " * n + "b" for n in range(1, 40)] + [" leading", "trailing  ", "    if x:\n        y"],
    "runs of signs": ["=" * n for n in range(1, 40)]
    + ["-" * n + "\n" for n in range(1, 40)]
    + ["。。。。。", "!!!!!!!"],
    "emoji": ["fine 🙂 thanks", "🙂🙂🙂", "👩‍👩‍👧 family", "天气☀️很好🌧"],
    "rare Han": ["𠮷野家", "㐀㐁", "龘靐齉爩", "他叫王𬭎，住在㙍。"],
    "looks like a control token": ["<s>", "</s> and <unk>", "<0x0A>", "<|im_start|>user\n<|im_end|>", "a<s>b"],
    "U+2581": ["a▁b", "▁", "▁▁ x"],
    "byte order mark": ["\ufeffHello", "a\ufeffb"],
    "mixed": [
        "def 加(x):\n\treturn x ** 2  # 平方",
        "https://example.org/?q=1&r=2",
        "Ｆｕｌｌ　ｗｉｄｔｈ",
        "e\u0301 é ﬁ",
        "\0 nul",
    ],
}


def held_out(run: Run, language: str) -> list[str]:
    column = pyarrow.parquet.read_table(run.path("corpus", "validation", f"{language}.parquet"))["text"]
    return [text[:CHARACTERS] for text in column.to_pylist()[:DOCUMENTS]]


def random_model(folder: Path, shape: Model) -> Transformer:
    """A model with random weights, as the checkpoint step-0 of a run's skeleton."""
    model = Transformer(shape)
    model.init_weights(0)
    (folder / "step-0").mkdir(parents=True)
    save_model(model, folder / "step-0")
    return model.eval()


def other_vocabulary(run: Run, kind: str, folder: Path) -> None:
    """Train a tokenizer of another kind on the run's text, and make a model of its size, of no other use."""
    settings: dict[str, Any] = {"model_type": kind, "vocab_size": run.recipe.tokenizer.vocab_size}
    texts = sample_texts(run.path("corpus"), run.recipe.corpus, TRAINED_BYTES, run.recipe.tokenizer.balance)
    chosen = TokenizerSettings(**settings, sample_bytes=TRAINED_BYTES)
    random_model(folder, Model(layers=1, heads=1, kv_heads=1, hidden=32, ffn=32, vocab_size=chosen.vocab_size))
    train(texts, chosen, folder / "tokenizer", seed=0, add_bos=run.recipe.tokens.bos)


def published_kind(run: Run, folder: Path) -> None:
    """With the published tokenizer's settings: a space before a text, runs of spaces joined, newlines in bytes."""
    import sentencepiece

    texts = islice(sample_texts(run.path("corpus"), run.recipe.corpus, TRAINED_BYTES, 1.0), 3000)
    size = run.recipe.tokenizer.vocab_size
    random_model(folder, Model(layers=1, heads=1, kv_heads=1, hidden=32, ffn=32, vocab_size=size))
    (folder / "tokenizer").mkdir()
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tokenizer" / "tokenizer"),
        vocab_size=size,
        normalization_rule_name="identity",
        character_coverage=0.9999,
        byte_fallback=True,
        split_digits=True,
        max_sentence_length=1_000_000,
        minloglevel=2,
    )
    mark_encoder(folder / "tokenizer", "tokenizer.model", 1, 2)


def in_file(path: Path, model: Transformer) -> Transformer:
    """Our model with the weights that stand in a GGUF file, as float32."""
    reader = gguf.GGUFReader(path)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[reader.fields["general.architecture"].contents().upper()], 999)
    stored = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    config, state = model.config, {}
    for name, parameter in model.state_dict().items():
        values = torch.from_numpy(np.array(stored[names.get_name(name, (".weight",)) or ""])).reshape(parameter.shape)
        if not config.qk_norm and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.heads if "q_proj" in name else config.kv_heads
            values = values.view(heads, -1, 2, values.shape[1]).transpose(1, 2).reshape(values.shape)
        state[name] = values
    again = Transformer(config)
    again.load_state_dict(state)
    return again.eval()


@torch.no_grad()
def compare_logits(models: list[Transformer], sequences: list[list[int]], theirs: list[np.ndarray]) -> dict[str, Any]:
    """Largest difference of logits, mean divergence and share of equal first choices, for each of our models."""
    found: dict[str, Any] = {}
    for name, model in zip(("checkpoint", "file"), models, strict=True):
        ours_NV = torch.cat([model(torch.tensor([ids]))[0].double() for ids in sequences])
        theirs_NV = torch.from_numpy(np.concatenate(theirs)).double()
        log_ours_NV, log_theirs_NV = ours_NV.log_softmax(-1), theirs_NV.log_softmax(-1)
        divergence = (log_ours_NV.exp() * (log_ours_NV - log_theirs_NV)).sum(-1).mean()
        found[name] = {
            "largest_difference": float((ours_NV - theirs_NV).abs().max()),
            "of_largest_logit": float(ours_NV.abs().max()),
            "mean_divergence_nats": float(divergence),
            "same_first_choice": float((ours_NV.argmax(-1) == theirs_NV.argmax(-1)).double().mean()),
            "positions": len(ours_NV),
        }
    return found


def compare_ids(texts: list[str], ours: list[list[int]], theirs: list[list[int]], byte_ids: range) -> dict[str, Any]:
    """How many texts and tokens differ, and in how many texts because a character has no piece."""
    different = [number for number in range(len(texts)) if ours[number] != theirs[number]]
    tokens = 0
    for number in different:
        blocks = difflib.SequenceMatcher(None, ours[number], theirs[number], autojunk=False).get_matching_blocks()
        tokens += len(ours[number]) - sum(block.size for block in blocks)
    spelt = [number for number in different if any(i in byte_ids for i in ours[number])]
    return {
        "texts": len(texts),
        "texts_different": len(different),
        "of_them_with_bytes": len(spelt),
        "tokens": sum(map(len, ours)),
        "tokens_different": tokens,
        "first": [texts[number][:60] for number in different[:2]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--llama", required=True, metavar="PYTHON", help="of an environment with llama-cpp-python")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gguf-check.json")
    options = parser.parse_args()
    run = open_run(str(options.run))
    checkpoint, bos = checkpoint_folder(run), run.recipe.tokens.bos
    if run.recipe.tokenizer.path or run.recipe.tokenizer.model_type != "unigram":
        parser.error(f"{run.folder}: its tokenizer is not a unigram one of ours")
    tokenizer, model = Tokenizer.load(run.path("tokenizer")), load_model(checkpoint)
    groups = {f"held-out {language}": held_out(run, language) for language in ("en", "zh")} | KINDS
    texts = [text for group in groups.values() for text in group]
    start = [tokenizer.bos_id] * bos
    length = model.config.context_length
    documents = [text for language in ("en", "zh") for text in islice(groups[f"held-out {language}"], 4)]
    sequences = [(start + tokenizer.encode(text))[: min(length, 192)] for text in documents]
    prompts = [ids[: min(48, length - GREEDY)] for ids in sequences]

    with tempfile.TemporaryDirectory() as scratch:
        files: dict[str, Path] = {}
        tasks: list[dict[str, Any]] = []

        def add(name: str, folder: Path, step: Path, kind: str, unigram: str, whole: bool) -> None:
            files[name] = Path(scratch) / f"{name.replace(' ', '-')}.gguf"
            export_gguf(folder, step, files[name], Export(), kind=kind, bos=bos, unigram=unigram)
            asked = {"sequences": sequences, "prompts": prompts} if whole else {"sequences": [], "prompts": []}
            tasks.append({"file": str(files[name]), "texts": texts, "tokens": GREEDY, **asked})

        for kind in TYPES:
            add(kind, run.folder, checkpoint, kind, "t5", whole=True)
        models = dict.fromkeys(TYPES, model)
        qwen3 = Path(scratch) / "qwen3"
        shape = replace(model.config, qk_norm=True, tied_embeddings=True, init_std=0.1)
        models["f32, random Qwen3"] = random_model(qwen3, shape)
        shutil.copytree(run.path("tokenizer"), qwen3 / "tokenizer")
        add("f32, random Qwen3", qwen3, qwen3 / "step-0", "f32", "t5", whole=True)
        tokenizers: dict[str, Any] = {"unigram as t5": tokenizer, "unigram as plamo2": tokenizer}
        names = {"unigram as t5": "f32", "unigram as plamo2": "plamo2"}
        add("plamo2", run.folder, checkpoint, "f32", "plamo2", whole=False)
        for kind, ways in (("shortest", ("t5", "plamo2")), ("bpe", ("llama",))):
            folder = Path(scratch) / kind
            other_vocabulary(run, kind, folder)
            for way in ways:
                name = f"{kind} as {way}"
                tokenizers[name], names[name] = Tokenizer.load(folder / "tokenizer"), name
                unigram = "t5" if way == "llama" else way
                add(name, folder, folder / "step-0", "f32", unigram, whole=False)
        published_kind(run, Path(scratch) / "published")
        tokenizers["published kind as t5"] = Tokenizer.load(Path(scratch) / "published" / "tokenizer")
        names["published kind as t5"] = "published"
        add("published", Path(scratch) / "published", Path(scratch) / "published" / "step-0", "f32", "t5", whole=False)
        (Path(scratch) / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
        command = [options.llama, str(WORKER), str(Path(scratch) / "tasks.json"), str(Path(scratch) / "found.npz")]
        subprocess.run(command, check=True)
        found = np.load(Path(scratch) / "found.npz")
        number = {name: at for at, name in enumerate(files)}

        formats: dict[str, Any] = {}
        for kind, model in models.items():
            ours = [list(generate(model, ids, max_new_tokens=GREEDY, stop_ids=())) for ids in prompts]
            at = number[kind]
            theirs = [found[f"{at}/logits/{i}"] for i in range(len(sequences))]
            formats[kind] = compare_logits([model, in_file(files[kind], model)], sequences, theirs)
            greedy = [found[f"{at}/greedy/{i}"].tolist() for i in range(len(ours))]
            same = [next((n for n in range(len(a)) if a[n] != b[n]), len(a)) for a, b in zip(ours, greedy, strict=True)]
            formats[kind]["greedy"] = {
                "prompts": len(ours),
                "equal": sum(map(list.__eq__, ours, greedy)),
                "ids": sum(map(len, ours)),
                "ids_before_first_difference": sum(same),
            }
            formats[kind]["bytes"] = files[kind].stat().st_size

    vocabularies: dict[str, Any] = {}
    for name, codec in tokenizers.items():
        at = number[names[name]]
        ids = iter([ids.tolist() for ids in codec.encode_batch(texts)])
        theirs_ids = iter([found[f"{at}/ids/{i}"].tolist() for i in range(len(texts))])
        first_byte = codec.pieces.index(b"\0")
        vocabularies[name] = {
            group: compare_ids(
                members,
                list(islice(ids, len(members))),
                list(islice(theirs_ids, len(members))),
                range(first_byte, first_byte + 256),
            )
            for group, members in groups.items()
        }
        pieces = [bytes.fromhex(piece) for piece in found[f"{at}/pieces"].tolist()]
        wrong = [i for i, piece in enumerate(codec.pieces) if i != codec.unk_id and piece != pieces[i]]
        vocabularies[name]["pieces_whose_bytes_differ"] = len(wrong)
        vocabularies[name]["adds_bos"] = found[f"{at}/with_bos"].tolist()[:1] == [codec.bos_id]
        vocabularies[name]["reads_bos_in_a_prompt"] = found[f"{at}/parsed"].tolist()[:1] == [codec.bos_id]

    report(formats, vocabularies, list(groups))
    versions = {name: version(name) for name in ("torch", "gguf")} | {"llama-cpp-python": str(found["version"])}
    facts = {"python": platform.python_version(), "machine": platform.machine(), **versions}
    write_json(
        options.out,
        {
            "model": {"name": run.recipe.name, "step": checkpoint.name, "vocab_size": model.config.vocab_size},
            "settings": {"greedy": GREEDY, "documents": DOCUMENTS, "characters": CHARACTERS, "cache": "float32"},
            "versions": facts,
            "formats": formats,
            "tokenizers": vocabularies,
        },
    )


def report(formats: dict[str, Any], vocabularies: dict[str, Any], groups: list[str]) -> None:
    rows = [
        [
            kind,
            f"{row['bytes']:,}",
            f"{row['file']['largest_difference']:.2g}",
            f"{row['checkpoint']['largest_difference']:.2g}",
            f"{row['checkpoint']['mean_divergence_nats']:.2g}",
            f"{100 * row['checkpoint']['same_first_choice']:.1f}",
            f"{row['greedy']['equal']} of {row['greedy']['prompts']}",
            f"{row['greedy']['ids_before_first_difference']} of {row['greedy']['ids']}",
        ]
        for kind, row in formats.items()
    ]
    headers = ["format", "bytes", "to the file's weights", "to the checkpoint's", "divergence", "same first %"]
    print(table([*headers, "greedy texts equal", "ids before a difference"], rows))
    rows = [
        [group]
        + [
            f"{found[group]['texts_different']}/{found[group]['texts']}, "
            f"{found[group]['tokens_different']}/{found[group]['tokens']}"
            for found in vocabularies.values()
        ]
        for group in groups
    ]
    print("\ntexts and tokens that differ\n\n" + table(["texts", *vocabularies], rows))


if __name__ == "__main__":
    main()

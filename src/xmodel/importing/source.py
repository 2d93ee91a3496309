"""What a folder of others holds: the shape of its model, its tokenizer, and what they say of themselves."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from xmodel.console import log
from xmodel.errors import UserError
from xmodel.files import nearest_folder, read_json, read_object
from xmodel.model.checkpoint_io import CONFIG
from xmodel.model.config import from_hf
from xmodel.recipe.presets import swiglu_width
from xmodel.recipe.settings import Model
from xmodel.tokenizer.adopt import MOST_PIECES
from xmodel.tokenizer.others import JsonTokenizer, Opened, OurTokenizer, open_tokenizer

Kind = Literal["official", "hf"]

# The published configuration class's own values (configuration_xmodel.py), for what a config.json leaves out.
PUBLISHED = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "rms_norm_eps": 1e-5,
}
TRAINED_CONTEXT = 4096  # tokens of the published model's training sequences; its position table is longer
LLAMAS = ("llama", "mistral", "qwen3")  # model types that have a Llama's tensors and arithmetic


class Source(NamedTuple):
    """A folder that can be imported.

    Attributes:
        shape: of the model, resolved.
        tokenizer: opened; where: the path that it was opened from.
        bos: whether its texts begin with <s>.
        licence: of the weights, as the folder's model card names it; "unknown" where it does not.
    """

    shape: Model
    tokenizer: Opened
    where: str
    bos: bool
    licence: str


def read_source(folder: Path, kind: Kind, tokenizer: str | None, context: int | None) -> Source:
    """Look at a folder: configuration and tokenizer, not the weights.

    Args:
        kind: "official": the published Xmodel-LM format; "hf": a Llama of Hugging Face transformers.
        tokenizer: where the tokenizer is, if not in the folder.
        context: tokens of the model's context, in place of what the folder says.

    Raises:
        UserError: not such a folder, another architecture, or a tokenizer that does not belong to the model.
        MachineError: a file is damaged.
    """
    shape = _shape(folder, kind, context)
    try:
        opened = open_tokenizer(tokenizer or folder)
    except UserError as error:
        hint = "" if tokenizer else "; --tokenizer names one that lies elsewhere"
        raise UserError(f"{error}{hint}") from None
    where = str(tokenizer or folder)
    _check_tokenizer(opened, where, shape, kind)
    licence = "apache-2.0" if kind == "official" else _licence(folder / "README.md")
    return Source(shape, opened, where, _begins_with_bos(opened), licence)


def _shape(folder: Path, kind: Kind, context: int | None) -> Model:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder{nearest_folder(folder)}")
    if not (folder / CONFIG).is_file():
        hint = "; a run is evaluated and exported as it is" if (folder / "recipe.yaml").is_file() else ""
        raise UserError(f"{folder}: no {CONFIG}, so not a model folder{hint}")
    config = read_object(folder / CONFIG)
    found = config.get("model_type")
    if kind == "official":
        if found != "xmodel":
            raise UserError(
                f"{folder / CONFIG}: model_type {found!r}, the published Xmodel-LM has 'xmodel'; "
                "`xmodel import hf` takes Llamas of Hugging Face"
            )
        config = PUBLISHED | config
        config["intermediate_size"] = config.get("intermediate_size") or swiglu_width(int(config["hidden_size"]))
        config.setdefault("context_length", min(TRAINED_CONTEXT, int(config["max_position_embeddings"])))
    elif found == "xmodel":
        raise UserError(f"{folder / CONFIG}: the published Xmodel-LM format; `xmodel import official` takes it")
    elif found not in LLAMAS:
        raise UserError(
            f"{folder / CONFIG}: model_type {found!r}; import takes {', '.join(LLAMAS)}: Llamas in all but name"
        )
    elif found == "mistral" and config.get("sliding_window"):
        raise UserError(
            f"{folder / CONFIG}: sliding_window {config['sliding_window']}; import takes full attention only"
        )
    try:
        shape = from_hf(config)
    except UserError as error:
        raise UserError(f"{folder / error.args[0]}") from None
    if context is not None:
        if not 8 <= context <= shape.position_table:
            raise UserError(
                f"--context-length {context}: has to be from 8 to the model's {shape.position_table} positions"
            )
        shape = dataclasses.replace(shape, context_length=context)
    if shape.vocab_size > MOST_PIECES:
        raise UserError(
            f"{folder / CONFIG}: vocab_size {shape.vocab_size:,}; a run stores token ids in 16 bits, at most "
            f"{MOST_PIECES:,}. `xmodel evaluate` scores such a folder where it lies"
        )
    return shape


def _check_tokenizer(opened: Opened, where: str, shape: Model, kind: Kind) -> None:
    pieces, rows = opened.vocab_size, shape.vocab_size
    if pieces > rows or (kind == "official" and pieces != rows):
        raise UserError(
            f"{where}: a tokenizer of {pieces:,} pieces, but the model's embedding has {rows:,} rows; "
            "it belongs to another model"
        )
    if opened.eos_id is None:
        raise UserError(f"{where}: has no end-of-text token (eos), which a run needs; name it in tokenizer_config.json")
    if pieces < rows:
        log(f"import: the tokenizer has {pieces:,} pieces, the embedding {rows:,} rows: the others are never read")


def _begins_with_bos(opened: Opened) -> bool:
    """Whether the model's texts begin with <s>: as tokenizer_config.json says, or the tokenizer.json does it."""
    if opened.bos_id is None:
        return False
    path = opened.folder / "tokenizer.model" if isinstance(opened, OurTokenizer) else opened.path
    config = path.with_name("tokenizer_config.json")
    stated = read_json(config).get("add_bos_token") if config.is_file() else None
    if isinstance(stated, bool):
        return stated
    if not isinstance(opened, JsonTokenizer):
        return True  # SentencePiece's users: Llama and its kin
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(opened.path)).encode("a").ids[:1] == [opened.bos_id]


def _licence(card: Path) -> str:
    """`license` of a model card's front matter."""
    if not card.is_file():
        return "unknown"
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        matter = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except yaml.YAMLError:
        return "unknown"
    value = matter.get("license") if isinstance(matter, dict) else None
    return value if isinstance(value, str) else "unknown"


def recipe_text(name: str, source: Source, origin: str, checkpoint: str) -> str:
    """recipe.yaml of an imported run: what is known of the model; a recipe that extends it trains the model further."""
    shape = {
        key: value for key, value in dataclasses.asdict(source.shape).items() if key not in ("preset", "width_base")
    }
    content: dict[str, Any] = {
        "name": name,
        "tokenizer": {"path": "tokenizer", "vocab_size": source.tokenizer.vocab_size},
        "tokens": {"bos": source.bos},
        "model": shape,
        "pretrain": {"init_from": checkpoint},
        "export": {"licence": source.licence},
    }
    return (
        f"# Imported from {json.dumps(origin, ensure_ascii=False)}. It has no corpus; a recipe that begins with\n"
        "# `extends: THIS FILE` and gives corpus.sources and pretrain trains the model further.\n"
        + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    )

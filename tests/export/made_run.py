"""As much of a run as an export needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import make_model, texts

from xmodel.files import checksum, write_json
from xmodel.model.checkpoint_io import save_model
from xmodel.model.transformer import Transformer
from xmodel.recipe.settings import Model
from xmodel.recipe.settings import Tokenizer as TokenizerSettings
from xmodel.tokenizer.train import train

STEP = "step-000000040"
TEXTS = (
    "Mira went to Oslo.",
    " two  spaces,\ttabs\n\n\nand lines \r\n",
    "小林带着17个红苹果去了绿色的山。",
    "def f(x):\n    return x ** 2  # 平方 🙂 𝄞 \u00e9 e\u0301",
    "<s> is not a token here, nor is </s> or <0x0A> or <|im_start|>",
    "",
)


def make_run(
    folder: Path, *, bos: bool = True, tied: bool = False, kind: str = "unigram", model: Transformer | None = None
) -> Path:
    """A run directory with a tokenizer, one checkpoint of a random model and a recipe."""
    settings: dict[str, Any] = {"vocab_size": 420, "model_type": kind}
    (folder / "checkpoints" / STEP).mkdir(parents=True)
    train(texts(), TokenizerSettings(**settings), folder / "tokenizer", seed=0, add_bos=bos)
    save_model(model or make_model(420, tied=tied), folder / "checkpoints" / STEP)
    files = sorted((folder / "checkpoints" / STEP).iterdir())
    manifest = {file.name: {"bytes": file.stat().st_size, "checksum": checksum(file)} for file in files}
    write_json(folder / "checkpoints" / STEP / "manifest.json", manifest)
    (folder / "recipe.yaml").write_text(
        f"name: my-model\ntokens: {{bos: {str(bos).lower()}}}\ntokenizer: {{vocab_size: 420, model_type: {kind}}}\n"
        "model: {preset: nano, vocab_size: 420, context_length: 64}\n"
        "corpus: {sources: [{name: mine, reader: sandbox, paths: [en], weight: 1.0, documents: 9}]}\n"
    )
    return folder


def made_model(**shape: Any) -> Transformer:
    """A random model of two layers."""
    settings: dict[str, Any] = {"layers": 2, "heads": 4, "kv_heads": 2, "hidden": 64, "ffn": 96, "vocab_size": 420}
    model = Transformer(Model(**settings | {"context_length": 64, "position_table": 128, "init_std": 0.3} | shape))
    model.init_weights(1)
    return model.eval()

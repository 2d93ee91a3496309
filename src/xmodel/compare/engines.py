"""A model opened in an engine: our own, or Hugging Face transformers as most people run it.

Legend of the shape suffixes: B sequences, T tokens of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xmodel.compare.architectures import ARCHITECTURES, kv_values_per_token
from xmodel.errors import UserError
from xmodel.files import read_json
from xmodel.inference.batch import Batch, Row
from xmodel.inference.fast import prepare
from xmodel.inference.generate import generate
from xmodel.model.checkpoint_io import CONFIG, load_model
from xmodel.model.config import from_hf
from xmodel.model.transformer import Transformer, compile_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TILE = 1 << 20  # random numbers that fill the weights, again and again: drawing a billion takes longer than measuring
ENGINES = ("xmodel", "transformers")

Generate = Callable[[Tensor, int, str], list[float]]


class Opened(NamedTuple):
    """A model that is ready to be measured.

    Attributes:
        module: its parameters.
        generate: (ids_BT, new tokens, cache) -> moments (time.perf_counter) at which each new token was on the host.
        loss: ids_BT -> mean cross-entropy of each token given those before it.
        caches: kinds of key/value cache that `generate` knows.
        config: as config.json spells it.
        positions: tokens that a sequence may have.
        weights: "random" or "its own".
        setting: how it computes, in words.
    """

    module: nn.Module
    generate: Generate
    loss: Callable[[Tensor], Tensor]
    caches: tuple[str, ...]
    config: dict[str, Any]
    positions: int
    weights: str
    setting: str

    @property
    def facts(self) -> dict[str, Any]:
        """Sizes: parameters, bytes of weights, bytes of the key/value cache for a token."""
        parameters = list(self.module.parameters())
        return {
            "model_type": self.config["model_type"],
            "layers": self.config["num_hidden_layers"],
            "parameters": sum(p.numel() for p in parameters),
            "weight_bytes": sum(p.numel() * p.element_size() for p in parameters),
            "kv_bytes_per_token": kv_values_per_token(self.config) * parameters[0].element_size(),
            "positions": self.positions,
            "weights": self.weights,
            "setting": self.setting,
        }


def open_model(
    subject: dict[str, Any], *, device: str, dtype: str, layers: int, training: bool, compiled: bool
) -> Opened:
    """Open a subject for inference in `dtype`, or for training (weights in float32, products in `dtype`).

    Args:
        subject: engine, and architecture (a name of the table) or folder (config.json and weights).
        layers: cut the model to so many layers, with random weights; 0: whole.

    Raises:
        UserError: the engine cannot run the model.
    """
    config = dict(ARCHITECTURES[subject["architecture"]].config) if "architecture" in subject else None
    folder = Path(subject["folder"]) if config is None else None
    if folder is not None:
        config = read_json(folder / CONFIG)
        if "context_length" in config:
            config["positions"] = config["context_length"]
    assert config is not None
    if layers:
        config["num_hidden_layers"] = min(layers, config["num_hidden_layers"])
        folder = None
    number_format = torch.float32 if training else DTYPES[dtype]
    open_in = _open_ours if subject["engine"] == "xmodel" else _open_theirs
    return open_in(config, folder, device, number_format, DTYPES[dtype], compiled, training)


def fill(module: nn.Module) -> None:
    """Random weights: matrices from N(0, 0.02), scales 1, biases 0."""
    tiles: dict[torch.dtype, Tensor] = {}
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.dim() < 2:
                p.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            if p.dtype not in tiles:
                generator = torch.Generator(p.device).manual_seed(0)
                tiles[p.dtype] = torch.empty(TILE, dtype=p.dtype, device=p.device).normal_(0, 0.02, generator=generator)
            flat = p.view(-1)
            for start in range(0, len(flat), TILE):
                part = flat[start : start + TILE]
                part.copy_(tiles[p.dtype][: len(part)])


def _open_ours(
    config: dict[str, Any],
    folder: Path | None,
    device: str,
    number_format: torch.dtype,
    product_format: torch.dtype,
    compiled: bool,
    training: bool,
) -> Opened:
    shape = from_hf(config)
    if folder is not None:
        model = load_model(folder, number_format, device)
    else:
        with torch.device("meta"):
            model = Transformer(shape)
        state = {
            name: torch.empty(t.shape, dtype=number_format, device=device) for name, t in model.state_dict().items()
        }
        model.load_state_dict(state, assign=True)
        model.rotary = model.rotary.to(device)
        fill(model)
        model.eval()
    model.compute_dtype = product_format
    if training:
        model.train()
        if compiled:
            compile_model(model)
    else:
        prepare(model)  # as generate, chat and serve do

    def loss(ids_BT: Tensor) -> Tensor:
        return model.loss(ids_BT[:, :-1], ids_BT[:, 1:]) / ids_BT[:, 1:].numel()

    @torch.no_grad()
    def moments(ids_BT: Tensor, new_tokens: int, cache: str) -> list[float]:
        """As `inference.many` does it: the prompts in one pass, then steps of all rows."""
        prompts = ids_BT.tolist()
        if len(prompts) == 1:
            return [time.perf_counter() for _ in generate(model, prompts[0], max_new_tokens=new_tokens, stop_ids=())]
        length, stamps = ids_BT.shape[1], []
        rows, batch = [Row(prompt, new_tokens) for prompt in prompts], Batch(model, len(prompts), length + new_tokens)
        own = model.new_cache(len(prompts), length)
        logits_BV = model.head(model.hidden(ids_BT, own)[:, -1])
        for number, row in enumerate(rows):
            row.length = length
            batch.join(row, own, number, 0, length)
        del own
        while True:
            tokens = logits_BV.argmax(-1).tolist()
            stamps.append(time.perf_counter())
            if len(stamps) == new_tokens:
                return stamps
            for row, token in zip(batch.going, tokens, strict=True):
                row.last = token
            logits_BV = batch.step()

    how = "compiled" if compiled and training else "eager" if model.decoder is None else "decoding in our own kernels"
    return Opened(
        module=model,
        generate=moments,
        loss=loss,
        caches=("fixed",),
        config=config,
        positions=shape.context_length if folder is not None else shape.position_table,
        weights="random" if folder is None else "its own",
        setting=f"Xmodel-LM's engine, sdpa, {how}",
    )


def _open_theirs(
    config: dict[str, Any],
    folder: Path | None,
    device: str,
    number_format: torch.dtype,
    product_format: torch.dtype,
    compiled: bool,
    training: bool,
) -> Opened:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer
    from transformers.initialization import no_init_weights

    asked: dict[str, Any] = {"dtype": number_format, "attn_implementation": "sdpa"}
    model: Any
    try:
        if folder is not None:
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **asked)
            model.to(torch.device(device))
        else:
            with torch.device(device), no_init_weights():
                model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), **asked)
            model.tie_weights()  # which comes with the initialisation that was left out
            fill(model)
    except (ValueError, ImportError) as error:  # an architecture that it does not have
        raise UserError(f"transformers cannot open it: {str(error).strip().splitlines()[0]}") from None
    model.train(training)
    options = model.generation_config
    options.eos_token_id, options.pad_token_id = None, 0
    options.do_sample, options.disable_compile = False, not compiled

    class Stamps(BaseStreamer):
        """Notes when each token arrives on the host."""

        def __init__(self) -> None:
            self.moments: list[float] = []

        def put(self, value: Tensor) -> None:
            self.moments.append(time.perf_counter())

        def end(self) -> None:
            pass

    def moments(ids_BT: Tensor, new_tokens: int, cache: str) -> list[float]:
        stamps = Stamps()
        more: dict[str, Any] = {"cache_implementation": "static"} if cache == "static" else {}
        mask_BT = torch.ones_like(ids_BT)
        model.generate(ids_BT, attention_mask=mask_BT, max_new_tokens=new_tokens, streamer=stamps, **more)
        return stamps.moments[1:]  # the first is the prompt

    def loss(ids_BT: Tensor) -> Tensor:
        mixed = number_format != product_format
        with torch.autocast(torch.device(device).type, product_format, enabled=mixed):
            return forward(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss

    forward = torch.compile(model, dynamic=False) if compiled and training else model
    return Opened(
        module=model,
        generate=moments,
        loss=loss,
        caches=("static",) if compiled else ("dynamic", "static"),
        config=model.config.to_dict(),
        positions=config.get("positions") or model.config.max_position_embeddings,
        weights="random" if folder is None else "its own",
        setting=f"transformers' {'forward' if training else 'generate'}, sdpa, {'compiled' if compiled else 'eager'}",
    )

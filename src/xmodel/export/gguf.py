"""One file that llama.cpp, Ollama and LM Studio run: a Llama (or Qwen3, with QK-norm) in GGUF.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the tensors' names and the meaning of the keys
come from the `gguf` package, which llama.cpp's own converter uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from xmodel.errors import UserError
from xmodel.export.card import languages, run_name
from xmodel.export.gguf_tokenizer import Vocabulary, vocabulary, write_vocabulary
from xmodel.files import atomic_write
from xmodel.model.counts import parameters
from xmodel.model.weight_stream import StoredWeights, stored_weights
from xmodel.recipe.settings import Export, Model

if TYPE_CHECKING:
    import gguf

TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
BLOCK = 32  # weights of a row that Q8_0 gives one scale


def export_gguf(
    run_folder: Path,
    checkpoint: Path,
    path: Path,
    settings: Export,
    *,
    kind: str = "f16",
    bos: bool = True,
    unigram: str = "t5",
) -> None:
    """Write a checkpoint of a run as the file `path`, and `NAME.Modelfile` for Ollama beside it.

    The weights go from file to file tensor by tensor: memory is that of the largest tensor, whatever the model.

    Args:
        checkpoint: folder with config.json and model.safetensors.
        settings: the licence is of interest.
        kind: number format of the matrices, a key of TYPES; norms are always f32, as llama.cpp wants them.
        bos: whether texts begin with `<s>` (tokens.bos).
        unigram: how a unigram vocabulary is written, see gguf_tokenizer.

    Raises:
        UserError: the `gguf` package is missing; the checkpoint is not one; a matrix cannot be written in this format;
            the tokenizer is not one that llama.cpp reads.
        MachineError: a file of the run is missing or damaged.
    """
    if find_spec("gguf") is None:
        raise UserError("the gguf package is missing: pip install 'xmodel[gguf]'")
    import gguf

    weights = stored_weights(checkpoint)
    model = weights.config
    _check_rows(weights, kind)
    found = vocabulary(run_folder / "tokenizer", model.vocab_size, bos, unigram)
    name = run_name(run_folder)
    with atomic_write(path) as stream:
        writer = gguf.GGUFWriter(stream.name, "qwen3" if model.qk_norm else "llama")  # opens the same file once more
        try:
            _write_metadata(writer, model, name, kind, checkpoint, settings, languages(run_folder))
            write_vocabulary(writer, found)
            _write_tensors(writer, weights, kind)
        finally:
            writer.close()
    with atomic_write(path.with_suffix(".Modelfile"), "w") as stream:
        stream.write(modelfile(path.name, model, found, settings.licence))


def _write_metadata(
    writer: gguf.GGUFWriter,
    model: Model,
    name: str,
    kind: str,
    checkpoint: Path,
    settings: Export,
    spoken: list[str],
) -> None:
    import gguf

    head_size = model.hidden // model.heads
    total = parameters(model)["total"]
    writer.add_type("model")
    writer.add_name(name)
    writer.add_description(f"written by Xmodel-LM from {checkpoint.name}")
    writer.add_size_label(gguf.size_label(total, total, 0, 0))
    writer.add_license(settings.licence)
    writer.add_languages(spoken)
    writer.add_tags(["text-generation"])
    writer.add_file_type(gguf.LlamaFileType[TYPES[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(model.context_length)  # what it was trained with; the position table may be longer
    writer.add_embedding_length(model.hidden)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.ffn)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_layer_norm_rms_eps(model.norm_eps)


def _check_rows(weights: StoredWeights, kind: str) -> None:
    """Raise UserError where Q8_0 cannot cut the rows of a matrix into blocks."""
    uneven = [name for name, shape in weights.shapes.items() if len(shape) == 2 and shape[1] % BLOCK]
    if kind == "q8_0" and uneven:
        columns = weights.shapes[uneven[0]][1]
        raise UserError(
            f"--type q8_0: {uneven[0]} has rows of {columns} weights, and Q8_0 takes {BLOCK} at a time; "
            f"{len(uneven)} matrices are such. Choose f16 or bf16 (or model.hidden and model.ffn by {BLOCK})"
        )


def _write_tensors(writer: gguf.GGUFWriter, weights: StoredWeights, kind: str) -> None:
    """The tensors' table and then the tensors, one at a time."""
    import gguf

    architecture = gguf.MODEL_ARCH.QWEN3 if weights.config.qk_norm else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(architecture, weights.config.layers)
    matrix = gguf.GGMLQuantizationType[kind.upper()]
    for name, shape in weights.shapes.items():
        stored = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else matrix
        size = gguf.quant_shape_to_byte_shape(shape, stored)
        known = names.get_name(name, try_suffixes=(".weight",))
        assert known is not None, name
        writer.add_tensor_info(known, size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data_X in _encoded(weights, kind):
        writer.write_tensor_data(data_X)


def _encoded(weights: StoredWeights, kind: str) -> Iterator[np.ndarray]:
    """The bytes of every tensor in turn."""
    import gguf

    model = weights.config
    for name in weights.shapes:
        tensor = weights.read(name).float()
        if not model.qk_norm and name.endswith("q_proj.weight"):
            tensor = interleaved(tensor, model.heads)
        elif not model.qk_norm and name.endswith("k_proj.weight"):
            tensor = interleaved(tensor, model.kv_heads)
        if tensor.ndim == 1 or kind == "f32":
            yield _bytes(tensor)
        elif kind == "q8_0":
            yield gguf.quantize(tensor.numpy(), gguf.GGMLQuantizationType.Q8_0)
        else:
            half = tensor.to({"f16": torch.float16, "bf16": torch.bfloat16}[kind])
            if not half.isfinite().all():
                largest = float(tensor.abs().max())
                raise UserError(f"--type {kind}: {name} holds {largest:.3g}, which does not fit; choose bf16 or f32")
            yield _bytes(half)


def interleaved(weight_OD: Tensor, heads: int) -> Tensor:
    """The rows of a query or key matrix as llama.cpp's `llama` turns them: neighbours, not halves.

    Ours (and Hugging Face's) rotate row i of a head together with row i + C/2; llama.cpp rotates rows 2i and 2i + 1.
    """
    outputs, inputs = weight_OD.shape
    return weight_OD.view(heads, 2, outputs // heads // 2, inputs).transpose(1, 2).reshape(outputs, inputs)


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().view(torch.uint8).numpy()


def modelfile(file: str, model: Model, found: Vocabulary, licence: str) -> str:
    """The Modelfile with which `ollama create NAME -f FILE` takes the GGUF beside it.

    A base model gets its prompt as it is. ChatML is spelt out, since Ollama's templates are not Jinja's; any other chat
    template is left to Ollama, which finds it in the GGUF where it knows it.
    """
    begin = found.tokens[found.ids["bos"]].decode() if found.model == "plamo2" and found.add_bos else ""
    lines = [f"FROM ./{file}", f"PARAMETER num_ctx {model.context_length}"]
    if "<|im_start|>" in found.chat_template:
        lines += [
            f'TEMPLATE """{begin}{{{{- range .Messages }}}}<|im_start|>{{{{ .Role }}}}',
            "{{ .Content }}<|im_end|>",
            "{{ end }}<|im_start|>assistant",
            '"""',
            'PARAMETER stop "<|im_end|>"',
        ]
    elif not found.chat_template:
        lines.append(f'TEMPLATE """{begin}{{{{ .Prompt }}}}"""')
    return "\n".join([*lines, f'LICENSE """{licence}"""', ""])

"""What is evaluated, served or talked to: a run, a checkpoint, any Hugging Face causal model, opened by one function.

Every consumer sees the same two faces. The *model* has `config.context_length`, `config.vocab_size`,
`device`, `compute_dtype`, `hidden`, `head` and `new_cache`: a `Transformer`, or an `HfModel` that looks like one. The
*tokenizer* has `encode_batch`, `encode`, `decode`, `pieces`, `vocab_size`, `bos_id` and `eos_id`.
"""

from __future__ import annotations

import collections
import hashlib
import platform
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from xmodel.console import log
from xmodel.errors import MachineError, UserError, not_from_hub
from xmodel.files import checksum, nearest_folder, read_json, read_object
from xmodel.model.checkpoint_io import AVERAGE, CONFIG, WEIGHTS, load_model, open_weights, weight_files
from xmodel.model.config import from_hf
from xmodel.model.pickles import unpickled
from xmodel.recipe.load import load_recipe
from xmodel.tokenizer.codec import Tokenizer, pieces_fingerprint
from xmodel.tokenizer.others import MARK, SentencePieceTokenizer, is_ours, open_tokenizer

HUB = "hf:"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEP = re.compile(r"step-(\d+)")
STATE = "state.json"  # in a checkpoint: which tokenizer its tokens were of, among other things
USED = 0.9  # share of a model's rows that a tokenizer has pieces for, at least: more padding is a mistake


class Subject(NamedTuple):
    """A model with its tokenizer, ready to be scored.

    Attributes:
        bos: whether every text begins with <s>; else what stands before a document is the </s> of the one before.
        name: short and safe as a file name.
        run: the run directory it comes from, None for other folders.
        about: where, step, sha256 of the weights, parameters, dtype, device, versions: goes into every result file.
        folder: the one with config.json and weights; None for a model that is in memory only.
    """

    model: Any
    tokenizer: Any
    bos: bool
    name: str
    run: Path | None
    about: dict[str, Any]
    folder: Path | None = None


def open_subject(where: str, *, step: int | None = None, dtype: str = "auto", device: str = "auto") -> Subject:
    """Open a model with its tokenizer.

    Args:
        where: a run directory, a checkpoint folder of a run, an exported or any other Hugging Face folder, or
            `hf:NAME_OR_DIR`, which may also be a name on the hub.
        step: the checkpoint of a run; None: the newest whole one.
        dtype: "fp32", "bf16", or "auto": bf16 on a GPU, fp32 elsewhere.
        device: as torch names it; "auto": a GPU where there is one.

    Raises:
        UserError: nothing there that can be scored, no such step, a tokenizer that does not fit the model.
        MachineError: a file is missing or damaged, or the hub cannot be reached.
    """
    if dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype {dtype!r}: it has to be auto, {' or '.join(DTYPES)}")
    place = _device(device)
    number_format = DTYPES["bf16" if place.type == "cuda" else "fp32"] if dtype == "auto" else DTYPES[dtype]
    folder, run = _locate(where, step)
    tokenizer_folder = run / "tokenizer" if run else folder
    files = weight_files(folder, pickles=True)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_sha256, files)  # beside the loading: hashing does not hold Python's lock
        model = _open_model(folder, files, number_format, place)
        tokenizer = Tokenizer.load(tokenizer_folder) if run else _open_tokenizer(folder)
        sha256 = digest.result()
    _check_fit(model, tokenizer, folder, run)
    found = STEP.fullmatch(folder.name)
    about = {
        "where": where,
        "step": int(found[1]) if run and found else None,
        "sha256": sha256,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(number_format).removeprefix("torch."),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        "versions": _versions(),
    }
    bos = load_recipe(run / "recipe.yaml").tokens.bos if run else _begins_with_bos(folder, tokenizer)
    return Subject(model, tokenizer, bos, _name(where, folder, run), run, about, folder)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise UserError(f"device {name!r}: it has to be auto, cpu, cuda or cuda:NUMBER")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r}: PyTorch finds no GPU here; auto or cpu does without")
    return device


def _locate(where: str, step: int | None) -> tuple[Path, Path | None]:
    """The folder with config.json and weights, and the run that it belongs to."""
    name = where.removeprefix(HUB)
    path = Path(name)
    if not name:
        raise UserError(f"{where!r} names no model: a run, a checkpoint, a model folder, or {HUB}OWNER/NAME")
    if path.is_dir():
        path = path.resolve()
    elif path.exists():
        raise UserError(f"{where}: a file; a model is opened by its folder, {path.parent}")
    elif where.startswith(HUB) and not path.is_absolute() and ".." not in path.parts:
        path = _from_hub(name)
    else:
        hint = nearest_folder(path) or f"; a model on the hub is written {HUB}OWNER/NAME"
        raise UserError(f"{where}: no such folder{hint}")
    if (path / "recipe.yaml").is_file():
        return _checkpoint(path, step), path
    if step is not None:
        raise UserError(f"{where}: not a run directory (it has no recipe.yaml), so it has no checkpoint of a step")
    if not (path / CONFIG).is_file():
        raise UserError(f"{where}: neither a run directory (no recipe.yaml) nor a model folder (no {CONFIG})")
    run = path.parent.parent
    if path.parent.name == "checkpoints" and (run / "recipe.yaml").is_file():
        if fault := _damage(path):
            raise MachineError(f"{path}: damaged ({fault})")
        return path, run
    return path, None


def _checkpoint(run: Path, step: int | None) -> Path:
    """The checkpoint of a step, or the newest whole one."""
    folders = {int(found[1]): path for path in run.glob("checkpoints/step-*") if (found := STEP.fullmatch(path.name))}
    if not folders:
        raise MachineError(f"{run / 'checkpoints'}: no whole checkpoint; `xmodel pretrain {run}` makes one")
    if step is not None:
        if step not in folders:
            near = sorted(sorted(folders, key=lambda other: abs(other - step))[:4])
            raise UserError(f"{run}: no checkpoint of step {step}; the nearest are {', '.join(map(str, near))}")
        if fault := _damage(folders[step]):
            raise MachineError(f"{folders[step]}: damaged ({fault})")
        return folders[step]
    for number in sorted(folders, reverse=True):
        fault = _damage(folders[number])
        if fault is None:
            return folders[number]
        log(f"checkpoint {folders[number].name} is damaged ({fault}); going back to the one before")
    raise MachineError(f"{run / 'checkpoints'}: all {len(folders)} checkpoints are damaged")


def _damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint that are read here, by its manifest; None when nothing is."""
    try:
        manifest = read_json(folder / "manifest.json")
    except MachineError as error:
        return str(error)
    for name in (CONFIG, WEIGHTS, AVERAGE):
        if (expected := manifest.get(name)) is None:
            continue
        if not (folder / name).is_file():
            return f"{name} is missing"
        if checksum(folder / name) != expected["checksum"]:
            return f"{name} does not have its checksum"
    return None


def _from_hub(name: str) -> Path:
    """The folder of the hub's cache with a model's files; fetched when it is not there."""
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{HUB}{name}: a model of the hub needs `pip install xmodel[hf]`") from None
    huggingface_hub.logging.set_verbosity_error()  # of each try again it would write two lines
    repository, _, revision = name.partition("@")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        for more in ([], ["pytorch_model*.bin"]):  # which older models have alone
            found = huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=patterns + more, ignore_patterns=["*/*"]
            )
            if any(Path(found).glob("*.safetensors")):
                break
    except Exception as error:
        raise not_from_hub(f"{HUB}{name}", error) from None
    return Path(found)


def _sha256(files: Sequence[Path]) -> str:
    """SHA-256 of a file's bytes; of several, of their digests in order: `sha256sum` of each, then of the hex digits."""
    digests = []
    for file in files:
        with open(file, "rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _open_model(folder: Path, files: Sequence[Path], dtype: torch.dtype, device: torch.device) -> Any:
    """Our own Transformer where the shape is ours; transformers' model behind the same face elsewhere."""
    config = read_object(folder / CONFIG)
    if config.get("model_type") == "xmodel":
        raise UserError(f"{folder}: the published Xmodel-LM format; `xmodel import official` makes a run of it")
    if config.get("model_type") in ("llama", "qwen3") and not config.get("quantization_config"):
        try:
            from_hf(config)
        except UserError:
            pass
        else:
            return load_model(folder, dtype, device)
    from xmodel.inference.hf_model import load_hf_model

    for file in files:  # transformers' own words for a damaged file, or one with code in it, are pages
        if file.suffix == ".bin":
            collections.deque(unpickled(file), maxlen=0)
        else:
            with open_weights(file):
                pass
    return load_hf_model(folder, dtype, device)


def _open_tokenizer(folder: Path) -> Any:
    """A folder's tokenizer: ours by our codec, a lone SentencePiece model by SentencePiece, else transformers'."""
    model, named = folder / "tokenizer.model", ("tokenizer.json", "vocab.json", "vocab.txt")
    if (folder / MARK).is_file() or (model.is_file() and is_ours(model.read_bytes())):
        return open_tokenizer(folder)
    if model.is_file() and not any((folder / name).is_file() for name in named):
        return SentencePieceTokenizer(model)
    if not any((folder / name).is_file() for name in named) and not any(folder.glob("*.model")):
        raise UserError(f"{folder}: no tokenizer; a model folder holds tokenizer.json or tokenizer.model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_object(folder / name)
    from xmodel.inference.hf_model import HfTokenizer

    return HfTokenizer(folder)


def _begins_with_bos(folder: Path, tokenizer: Any) -> bool:
    """Whether the folder's tokenizer puts <s> before a text by itself."""
    if (adds := getattr(tokenizer, "adds_bos", None)) is not None:
        return adds
    path = folder / "tokenizer_config.json"
    return bool(read_object(path).get("add_bos_token", True)) if path.is_file() else True


def _check_fit(model: Any, tokenizer: Any, folder: Path, run: Path | None) -> None:
    """Raise a UserError for a tokenizer whose ids are not the model's, or that has nothing to begin a text with."""
    pieces, rows = tokenizer.vocab_size, model.config.vocab_size
    if pieces > rows:
        raise UserError(
            f"{folder}: the tokenizer has {pieces} pieces, the model only {rows}: they do not belong together"
        )
    if run and (folder / STATE).is_file():
        trained, found = read_object(folder / STATE).get("tokenizer"), pieces_fingerprint(tokenizer)
        if trained and trained != found:
            raise UserError(
                f"{folder}: trained on tokens of another tokenizer ({trained}) than the one in {run / 'tokenizer'} "
                f"({found}); bring back that tokenizer"
            )
    if pieces < USED * rows:
        log(f"{folder}: the tokenizer has {pieces} pieces and the model {rows}: they may not belong together")
    if tokenizer.bos_id is None and tokenizer.eos_id is None:
        raise UserError(
            f"{folder}: its tokenizer names neither a beginning nor an end of text; a tokenizer_config.json with "
            "bos_token or eos_token does"
        )


def _name(where: str, folder: Path, run: Path | None) -> str:
    """A run by its folder's name and the step, others by the last two parts of what the user wrote."""
    if run:
        return f"{_safe(run.name)}-{folder.name}"
    if where.startswith(HUB) and not Path(where.removeprefix(HUB)).is_dir():
        return _safe(where.removeprefix(HUB))
    parent = folder.parent
    return _safe(f"{parent.parent.name}-{folder.name}" if parent.name == "export" else folder.name)


def _safe(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("xmodel", "torch", "transformers", "tokenizers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found

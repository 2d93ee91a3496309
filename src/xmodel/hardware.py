"""GPUs by the figures of their vendors' data sheets: what MFU is a share of, and what a plan is made with."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from xmodel.errors import UserError


class Gpu(NamedTuple):
    """One GPU.

    Attributes:
        name: as a person says it; its words are found in the name that the driver gives.
        family: architecture.
        bf16, fp8: dense peaks in FLOP/s, accumulated in float32 (data sheets often print twice that, with sparsity);
            None: the tensor cores have no such type.
        memory: bytes: the data sheet's GB as 1e9 bytes, a little less than what can be allocated.
        bandwidth: of the memory, bytes/s.
        watts: board power at most; None: not known.
    """

    name: str
    family: str
    bf16: float
    fp8: float | None
    memory: float
    bandwidth: float
    watts: float | None


def _gpu(name: str, family: str, bf16: float, fp8: float | None, gb: float, gb_s: float, watts: float) -> Gpu:
    return Gpu(name, family, bf16 * 1e12, fp8 * 1e12 if fp8 else None, gb * 1e9, gb_s * 1e9, watts)


# Sources: NVIDIA's data sheets of each board (SXM form unless the name says otherwise); for the GeForce cards the
# architecture papers of Ampere, Ada and Blackwell; for MI300X AMD's data sheet. A100 40GB is also sold as a 250 W PCIe
# board, A100 and A800 80GB as one of 300 W.
GPUS = (
    _gpu("B200", "blackwell", 2250, 4500, 180, 7700, 1000),
    _gpu("H200", "hopper", 989, 1979, 141, 4800, 700),
    _gpu("H100", "hopper", 989, 1979, 80, 3350, 700),
    _gpu("H100 NVL", "hopper", 835, 1671, 94, 3900, 400),
    _gpu("H100 PCIe", "hopper", 756, 1513, 80, 2000, 350),
    _gpu("H800", "hopper", 989, 1979, 80, 3350, 700),
    _gpu("H20", "hopper", 148, 296, 96, 4000, 400),
    _gpu("A100 40GB", "ampere", 312, None, 40, 1555, 400),
    _gpu("A100 80GB", "ampere", 312, None, 80, 2039, 400),
    _gpu("A800 40GB", "ampere", 312, None, 40, 1555, 400),
    _gpu("A800 80GB", "ampere", 312, None, 80, 2039, 400),
    _gpu("A40", "ampere", 149.7, None, 48, 696, 300),
    _gpu("A10G", "ampere", 70, None, 24, 600, 300),
    _gpu("A10", "ampere", 125, None, 24, 600, 150),
    _gpu("RTX A6000", "ampere", 154.8, None, 48, 768, 300),
    _gpu("RTX 3090", "ampere", 71, None, 24, 936, 350),
    _gpu("L40S", "ada", 362, 733, 48, 864, 350),
    _gpu("L40", "ada", 181, 362, 48, 864, 300),
    _gpu("L4", "ada", 121, 242, 24, 300, 72),
    _gpu("RTX 4090", "ada", 165.2, 330.3, 24, 1008, 450),
    _gpu("RTX 5090", "blackwell", 209.5, 419, 32, 1792, 575),
    _gpu("MI300X", "cdna3", 1307.4, 2614.9, 192, 5300, 750),
)


def of_device(name: str) -> Gpu | None:
    """The GPU that a driver's name means (`NVIDIA A100-SXM4-40GB`): the one with most words of its name in it.

    Laptop versions have other peaks under the same words, and are not known.
    """
    words = _words(name)
    found = [gpu for gpu in GPUS if _words(gpu.name) <= words and "laptop" not in words]
    return max(found, key=lambda gpu: len(_words(gpu.name)), default=None)


def named(text: str) -> Gpu:
    """The GPU that a person means: `H800`, `a100-80g`, `NVIDIA H100 PCIe`, `4090`.

    Raises:
        UserError: none, or several.
    """
    words = {re.sub(r"^(\d+)g$", r"\1gb", word) for word in _words(text)}
    exact = [gpu for gpu in GPUS if _words(gpu.name) == words]
    wider = [gpu for gpu in GPUS if words and words <= _words(gpu.name)]
    device = of_device(" ".join(words))
    found = exact or ([device] if device else wider)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--gpu {text}: which one? {' or '.join(gpu.name for gpu in found)}")
    names = [gpu.name for gpu in GPUS]
    near = difflib.get_close_matches(text.lower(), [name.lower() for name in names], 1, 0.5)
    hint = f"did you mean {next(name for name in names if name.lower() == near[0])}? " if near else ""
    raise UserError(f"--gpu {text}: not in the table; {hint}It has {', '.join(names)}")


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))

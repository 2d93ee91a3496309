"""One model on several devices: requests are dealt out in shares that keep common beginnings together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch

from xmodel.errors import UserError
from xmodel.inference.prefixes import sort_texts

T = TypeVar("T")


def every_gpu() -> list[str]:
    """Names of this machine's GPUs."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def replicas(model: Any, devices: Sequence[str]) -> list[Any]:
    """The model itself on its own device, and a copy of it on each other one of `devices`, in their order.

    Raises:
        UserError: a device that PyTorch does not have here.
    """
    found, own = [], True
    for name in devices:
        place = torch.device(name)
        if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
            raise UserError(f"device {name!r}: PyTorch finds {torch.cuda.device_count()} GPUs here")
        here = own and place == model.device
        found.append(model if here else copy.deepcopy(model).to(place))
        own = own and not here
    return found


def on_replicas(
    models: Sequence[Any], texts: Sequence[Sequence[int]], work: Callable[[Any, list[int]], Sequence[T]]
) -> list[T]:
    """`work(model, places)` for each model with its share of the places of `texts`, at the same time; all results.

    In the lexicographic order of the texts the shares are neighbours and hold about as many tokens each, so whatever
    texts have in common stays in one share, but at the borders. A thread drives a device: it waits for its own kernels
    without holding Python's lock.

        on_replicas(models, [context for context, _ in requests],
                    lambda model, places: loglikelihood(model, [requests[i] for i in places]))
    """
    if len(models) == 1:
        return list(work(models[0], list(range(len(texts))))) if texts else []
    order, shared = sort_texts([np.asarray(text, np.int64) for text in texts])
    new = np.cumsum([len(texts[number]) - common + 1 for number, common in zip(order, shared, strict=True)])
    total = int(new[-1]) if len(new) else 0
    cuts = [0, *np.searchsorted(new, [total * k / len(models) for k in range(1, len(models))]).tolist(), len(order)]
    shares = [order[first:last].tolist() for first, last in pairwise(cuts)]
    with ThreadPoolExecutor(len(models)) as pool:
        running = [pool.submit(work, model, share) for model, share in zip(models, shares, strict=True) if share]
        outcomes = [task.result() for task in running]
    found: dict[int, T] = {}
    for share, outcome in zip([share for share in shares if share], outcomes, strict=True):
        found.update(zip(share, outcome, strict=True))
    return [found[place] for place in range(len(texts))]

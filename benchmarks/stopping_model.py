"""A model that stops as a trained one does, without training: for benchmarks of generation.

A model with random weights hardly ever writes the end of a text, so that every answer is as long as it may be, unlike
those of any model that one would evaluate. Here random layers keep their work, but the output head undoes the input
embedding along chains of tokens: each token of a chain has one that follows it, and the last is followed by </s>. Where
in the chains an answer begins is decided by the random layers from the prompt, so how long an answer gets is a draw
from a given distribution of lengths, another one for every prompt, and the same in every program that runs the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

LOUD = 8.0  # standard deviation of the embeddings of chained tokens: the layers' noise is below it
FAINT = 0.01  # of the tokens that prompts end with: what comes behind them is up to the layers


@torch.no_grad()
def make_it_stop(model: Any, tokenizer: Any, lengths: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
    """Change embedding and head of a model with random weights, in place.

    Args:
        lengths: of answers, in tokens: the distribution to draw from.
        prompts: ids; tokens that prompts end with stand in no chain, and what all prompts have in common in their last
            state does not decide where their answers begin.
    """
    generator = np.random.default_rng(0)
    ends = {prompt[-1] for prompt in prompts}
    first_free = tokenizer.first_byte_id + 256
    tokens = [i for i in range(first_free, tokenizer.vocab_size) if tokenizer.pieces[i] and i not in ends]
    longest = max(lengths)
    drawn = np.quantile(lengths, np.linspace(0, 1, len(tokens) - longest)).round().astype(np.int64)
    left = np.concatenate([np.arange(1, longest + 1), drawn])  # tokens to come, of each chained one
    generator.shuffle(left)
    followers = {rest: itertools.cycle(np.flatnonzero(left == rest).tolist()) for rest in range(1, longest + 1)}
    embedding_VD, head_VD = model.model.embed_tokens.weight, model.head_weight
    noise = torch.Generator().manual_seed(0)
    embedding_VD.normal_(0.0, LOUD, generator=noise)
    embedding_VD[list(ends)] *= FAINT / LOUD
    sums_VD = torch.zeros_like(head_VD)
    for token, rest in zip(tokens, left.tolist(), strict=True):
        follower = tokenizer.eos_id if rest == 1 else tokens[next(followers[rest - 1])]
        sums_VD[follower] += embedding_VD[token]
    lonely_N = sums_VD.norm(dim=1) == 0
    lonely_N &= torch.isin(torch.arange(len(head_VD)), torch.tensor(tokens))
    sums_VD[lonely_N] = torch.randn(int(lonely_N.sum()), head_VD.shape[1], generator=noise)
    head_VD.copy_(sums_VD / sums_VD.norm(dim=1, keepdim=True).clamp(min=1e-6))
    states_ND = torch.stack([model.hidden(torch.tensor([list(prompt)]))[0, -1] for prompt in prompts])
    common_KD = torch.linalg.svd(states_ND, full_matrices=False)[2][: max(1, len(prompts) // 4)]
    head_VD -= head_VD @ common_KD.T @ common_KD

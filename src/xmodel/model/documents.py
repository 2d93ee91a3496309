"""Attention that stays within documents: a training window holds several, each ended by the same token.

Every position carries the first position of its own document; a query sees the keys from there up to itself. Rotary
positions go on running over the window: a score depends on the distance of two positions alone, so a document gives the
same wherever it stands. Nothing here depends on how many documents there are, so that shapes stay fixed under
torch.compile and the host never waits for the device. (A kernel for sequences of variable length, such as
torch.nn.attention.varlen, has their number as a shape: it would need both.)

Legend: B sequences, T positions, H query heads, K key/value heads, C head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from xmodel.model.attention import blocked_attention
from xmodel.model.loss import IGNORED

DocumentMask = Tensor | BlockMask  # what `document_mask` makes of `document_starts` for the kernel that will run


def document_starts(tokens_BT: Tensor, end_id: int) -> Tensor:
    """int32 [B, T]: the position at which the document of each token begins; 0 where it began before the window.

    Args:
        tokens_BT: integer token ids.
        end_id: the token that ends every document and stands nowhere else.
    """
    positions_T = torch.arange(tokens_BT.shape[1], dtype=torch.int32, device=tokens_BT.device)
    begins_BT = F.pad(tokens_BT[:, :-1] == end_id, (1, 0), value=True)
    return torch.where(begins_BT, positions_T, 0).cummax(dim=1).values


def model_inputs(rows_BT1: Tensor, end_id: int | None = None) -> dict[str, Tensor]:
    """What `Transformer.forward` takes, from windows of T + 1 tokens: inputs, targets and, with `end_id`, documents.

    Args:
        rows_BT1: int64 [B, T + 1]; -100 stands for padding, which gives no loss.
        end_id: with it attention stays within documents, and the end of a document has no target: what follows is the
            beginning of another document, which it does not know of.

    Returns:
        tokens_BT, targets_BT: int64; starts_BT: int32, with `end_id` only.
    """
    tokens_BT, targets_BT = rows_BT1[:, :-1].clamp(min=0), rows_BT1[:, 1:]
    if end_id is None:
        return {"tokens_BT": tokens_BT, "targets_BT": targets_BT}
    targets_BT = torch.where(tokens_BT == end_id, IGNORED, targets_BT)
    return {"tokens_BT": tokens_BT, "targets_BT": targets_BT, "starts_BT": document_starts(tokens_BT, end_id)}


def document_mask(starts_BT: Tensor, dtype: torch.dtype, compiled: bool) -> DocumentMask:
    """The form of the mask that `document_attention` needs; made once, all layers share it.

    On a CPU in bfloat16 the starts themselves (our blocked kernel passes over what lies before them). In a compiled
    step on other devices FlexAttention's block mask (arXiv 2412.05496), whose kernel passes over blocks without a pair
    to see. Elsewhere, where no backward pass is compiled (FlexAttention has none on a CPU), bool [B, 1, T, T].
    """
    length, device = starts_BT.shape[1], starts_BT.device
    if device.type == "cpu" and dtype == torch.bfloat16:
        return starts_BT
    if compiled and device.type != "cpu":
        return block_mask(starts_BT)
    positions_T = torch.arange(length, device=device)
    seen_BTT = (positions_T <= positions_T[:, None]) & (positions_T >= starts_BT[..., None])
    return seen_BTT.unsqueeze(1)


def block_mask(starts_BT: Tensor) -> BlockMask:
    """FlexAttention's form of the mask: the blocks of 128 x 128 that are empty, full or mixed, made on the device."""

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= starts_BT[batch, query])

    batch, length = starts_BT.shape
    return create_block_mask(seen, batch, None, length, length, device=starts_BT.device)


def document_attention(q_BHTC: Tensor, k_BKTC: Tensor, v_BKTC: Tensor, mask: DocumentMask) -> Tensor:
    """Grouped-query attention of every position over itself and what is before it in its document, [B, H, T, C]."""
    grouped = q_BHTC.shape[1] != k_BKTC.shape[1]
    if isinstance(mask, BlockMask):
        return flex_attention(q_BHTC, k_BKTC, v_BKTC, block_mask=mask, enable_gqa=grouped)  # type: ignore[return-value]
    if mask.dtype == torch.bool:
        return F.scaled_dot_product_attention(q_BHTC, k_BKTC, v_BKTC, attn_mask=mask, enable_gqa=grouped)
    return blocked_attention(q_BHTC, k_BKTC, v_BKTC, mask)

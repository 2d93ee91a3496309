"""Which documents of the training sources are kept for validation: decided by the document's own folded text.

The choice depends on (signature, seed) alone: it does not change when sources are added, reordered or read by other
workers, every language gives the same share, and two copies of a text can never stand on both sides.
"""

from __future__ import annotations

import numpy as np


def held_out(hashes_D2: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose a share of documents.

    Args:
        hashes_D2: uint64 [D, 2], signatures of the documents.
        share: expected share of documents chosen, 0 to 1.
        seed: another seed chooses other documents.

    Returns:
        bool [D].
    """
    # One round of the splitmix64 finaliser (Steele et al., 2014) keeps the choice independent of the seed's pattern.
    values = hashes_D2[:, 1] ^ np.uint64((seed * 0x9E3779B97F4A7C15) % 2**64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return (values >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share

"""How rare the encoder's tokens are: what decides where it cuts a text, where it cuts at rare tokens."""

from __future__ import annotations

import numpy as np
from safetensors import safe_open

from .base import F32
from .bundle import Bundle


def token_rarity(bundle: Bundle) -> F32:
    """f32 [V], inverse document frequencies of the encoder's vocabulary, as its graph reads them.

    Raises:
        BundleError: 4008 the bundle has no weights of an encoder.
    """
    with safe_open(str(bundle.file("encoder.safetensors")), "np") as weights:
        found: F32 = weights.get_tensor("idf").astype(np.float32)
    return found

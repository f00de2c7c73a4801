"""Powers of two that move sizes of channels from what is multiplied into the matrix it is multiplied with.

    norm, or the matrix before   /  2^shift     a channel of activations, quantised by row
    rows of the matrix           *  2^shift     quantised by column

In exact arithmetic nothing changes, and a power of two changes no bit of a float32 product either; only what int8
rounds does. SmoothQuant (Xiao et al., arXiv 2211.10438) divides by any number; a power of two leaves the weights
comparable with the model's own, value by value. The shifts lie beside the weights as ``NAME.shift``.

In: weights by graph name. Out: the same, shifted. ``calibration`` finds the shifts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .families import DecoderConfig
from .quantize import Stored
from .weights import FINAL_NORM, HEAD

Array = npt.NDArray[Any]
I8 = npt.NDArray[np.int8]

READERS: Final = {"q": "q", "k": "q", "v": "q", "o": "o", "gate": "gate", "up": "gate", "down": "down"}
"""Matrix of a layer -> the site whose shifts its rows take: matrices that share an input share a site."""
MAKERS: Final = {"attention_norm": "q", "v": "o", "v_bias": "o", "mlp_norm": "gate", "up": "down"}
"""Tensor of a layer -> the site whose shifts are taken out of its outputs."""
ENDING: Final = ".shift"


@dataclass(frozen=True)
class Smoothing:
    """Shifts of one decoder.

    Attributes:
        config: of the decoder.
        shifts: site, as ``layer.3.down`` or ``llm.head`` -> int8 [channels that are made]; of ``o`` [Hkv*D], one for
            all query heads that share a value head. A site that is not there is left as it is.
    """

    config: DecoderConfig
    shifts: Mapping[str, I8] = field(default_factory=dict)

    def apply(self, name: str, at: int, block: Array) -> Array:
        """Output channels of a tensor from ``at`` on, shifted.

        Args:
            name: of the graph tensor; ``llm.head`` for the head, also where the table is used as head.
            at: first output channel.
            block: of a matrix [in,n], of the head [n,in], else [n]; any float dtype.

        Returns:
            float32 where something changed, else ``block`` itself.
        """
        into, out = self.rows(name), self._outputs(name)
        if into is not None:
            block = np.ldexp(block.astype(np.float32), into if name == HEAD else into[:, None])
        if out is not None:
            # Outputs are a matrix's columns, and all there is of a norm or a bias.
            block = np.ldexp(block.astype(np.float32), -out[at : at + block.shape[-1]].astype(np.int32))
        return block

    def rows(self, name: str) -> npt.NDArray[np.int32] | None:
        """Shifts of a matrix's input channels, int32 [in]; None: none."""
        site, local = _site(name, READERS)
        found = self.shifts.get(HEAD if name == HEAD else site)
        if found is None or (local == "" and name != HEAD):
            return None
        wide = found.astype(np.int32)
        return spread(wide, self.config) if local == "o" else wide

    def stored(self) -> list[Stored]:
        """What lies in the weight file for them."""
        return [Stored(name + ENDING, "I8", shift.shape) for name, shift in self.shifts.items()]

    def _outputs(self, name: str) -> I8 | None:
        site, local = _site(name, MAKERS)
        return self.shifts.get(HEAD if name == FINAL_NORM else site) if local or name == FINAL_NORM else None


def _site(name: str, table: Mapping[str, str]) -> tuple[str, str]:
    """``layer.3.k`` -> site ``layer.3.q`` and its last part; empty for a tensor without a site."""
    layer, _, local = name.rpartition(".")
    site = table.get(local, "") if layer.startswith("layer.") else ""
    return f"{layer}.{site}", site


def spread(by_value_head: Array, config: DecoderConfig) -> Array:
    """[Hkv*D] -> [Hq*D]: query heads lie in groups that read one value head."""
    heads = by_value_head.reshape(config.num_kv_heads, 1, config.head_dim)
    return np.repeat(heads, config.num_heads // config.num_kv_heads, axis=1).reshape(-1)


def gather(by_query_head: Array, config: DecoderConfig) -> Array:
    """[Hq*D] -> [Hkv*D]: the largest of each group, the way back."""
    groups = by_query_head.reshape(config.num_kv_heads, -1, config.head_dim)
    largest: Array = groups.max(axis=1).reshape(-1)
    return largest


def read_smoothing(path: Path, config: DecoderConfig) -> Smoothing:
    """The shifts that lie in a weight file; none in one without."""
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        names = [name for name in file.keys() if name.endswith(ENDING)]  # noqa: SIM118  # not a dictionary
        return Smoothing(config, {name.removesuffix(ENDING): file.get_tensor(name) for name in names})

"""The splice graph: token embeddings with adapter rows in their places.

``inputs_embeds[b,t] = rows[b, row_index[b,t]]`` where ``row_index`` is not negative, else the LLM's embedding
of ``input_ids[b,t]``, scaled as its embedding module does. Adapter rows are not scaled: they imitate the
module's output.
"""

from __future__ import annotations

import numpy as np
import onnx

from ..engines.specs import splice_spec
from .decoder import embedded
from .external import Layout
from .families import DecoderConfig
from .graph import Graph
from .precision import Precision


def build_splice(config: DecoderConfig, layout: Layout, precision: Precision) -> onnx.ModelProto:
    """The splice graph of one LLM; its table is the decoder's own, in the decoder's weight file."""
    g = Graph("splice", layout)
    zero, last = g.constant("zero", np.array(0, np.int64)), g.constant("axis.last", np.array([-1], np.int64))
    is_row = g.op("GreaterOrEqual", "row_index", zero)
    tokens = embedded(g, "input_ids", config, precision)
    # [B,T,1] rows of [B,R,H]: one index a position, the same batch row.
    index = g.op("Unsqueeze", g.op("Max", "row_index", zero), last)
    picked = g.op("GatherND", "rows", index, batch_dims=1)
    g.op("Where", g.op("Unsqueeze", is_row, last), picked, tokens, out="inputs_embeds")
    return g.model(splice_spec(config.hidden_size))

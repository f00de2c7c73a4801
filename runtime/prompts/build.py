"""Frames, texts and questions to latent prompts, through a bundle's adapter.

In: an engine and a request. Out: one ``LatentPrompt``, the same positions that our own runtime would read.
"""

from __future__ import annotations

import numpy as np

from ...core.errors import ModelError
from ...engines.base import Engine
from ..adapt import adapt
from ..options import GenerateOptions
from ..pipeline import Context, Pipeline
from ..request import Request, Sizes
from .prompt import LatentPrompt
from .target import Dtype, target_of


def build(pipe: Pipeline, context: Context, question: str, dtype: Dtype = "float32") -> LatentPrompt:
    """One question about frames, or about a text that is not compressed.

    Raises:
        FrameError, ModelError, RowError: as ``Pipeline.request``.
        ModelError: 3225 as ``from_request``.
    """
    return from_request(
        pipe.engine, pipe.request(context, question, GenerateOptions(max_new_tokens=1), "prompt"), dtype
    )


def from_request(engine: Engine, request: Request, dtype: Dtype = "float32") -> LatentPrompt:
    """Run the adapter and lay the prompt out.

    Raises:
        ModelError: 3225 the bundle's latents reach further than the embeddings, where no other runtime takes them.
        LatentError: 3001, 3002 as ``Engine.adapt``.
    """
    beyond = sorted({"prefix", "cross"} & set(engine.bundle.manifest.graphs))
    if beyond and len(request.latents):
        fix = "use a checkpoint without deep_prefix, coprocessor or latent_adapters"
        raise ModelError(3225, f"latents of this bundle also reach {', '.join(beyond)}", where="latent prompt", fix=fix)
    rows, padded = adapt(engine, [request.latents])
    layout = Sizes(engine).layout(request, padded.shape[1])
    is_token = layout.row_index < 0
    latents = np.ascontiguousarray(rows[0][layout.row_index[~is_token]])
    return LatentPrompt(layout.ids, is_token, latents, target_of(engine, dtype))

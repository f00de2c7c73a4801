"""Peer: onnxruntime-genai on a folder that its own builder made of the model.

Runs as ``python -m peers.genai_peer``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .serve import Made, Prompts, made


class GenaiPeer(Prompts):
    """``open``: folder (built model), precision (of that folder), threads (set when it was built)."""

    def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Prompts``."""
        import onnxruntime_genai as og

        config = og.Config(request["folder"])
        threads = {"intra_op_num_threads": int(request["threads"])}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
        self._og, self._model = og, og.Model(config)
        versions = {"onnxruntime-genai": og.__version__}
        compute = request["precision"]
        return {"versions": versions, "compute": compute, "weights": compute, "how": "model builder, CPU"}

    def answer(self, prompts: list[list[int]], new_tokens: int) -> Made:
        """See ``Prompts``."""
        import numpy as np

        longest = max(map(len, prompts))
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(
            do_sample=False,
            max_length=longest + new_tokens,
            min_length=longest + new_tokens,  # an end token must not end the work
            batch_size=len(prompts),
        )
        generator = self._og.Generator(self._model, params)
        # Padding stands on the right, as its own encode_batch pads; it knows it by the pad id.
        ids = np.full((len(prompts), longest), self._pad(), np.int32)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        generator.append_tokens(ids)
        while not generator.is_done():
            generator.generate_next_token()
        return made([list(map(int, generator.get_sequence(row)[longest:])) for row in range(len(prompts))])

    def _pad(self) -> int:
        if not hasattr(self, "_pad_id"):
            self._pad_id = int(self._og.Tokenizer(self._model).pad_token_id)
        return self._pad_id


if __name__ == "__main__":
    GenaiPeer().serve()

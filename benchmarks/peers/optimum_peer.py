"""Peer: optimum-onnx, ``ORTModelForCausalLM.generate`` on a folder that its own exporter made of the model.

Prompts are padded on the left. Its graph applies the language model head to every prompt position. Runs as
``python -m peers.optimum_peer``; ``python -m peers.optimum_peer MODEL OUT`` exports.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from .serve import Made, Prompts, made


class OptimumPeer(Prompts):
    """``open``: folder (exported model), threads."""

    def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Prompts``."""
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        threads = int(request["threads"])
        torch.set_num_threads(threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._model = ORTModelForCausalLM.from_pretrained(
            request["folder"], session_options=options, use_io_binding=True, provider="CPUExecutionProvider"
        )
        self._torch = torch
        versions = {name: version(name) for name in ("optimum-onnx", "transformers", "onnxruntime", "torch")}
        return {"versions": versions, "compute": "float32", "weights": "float32", "how": "own exporter, generate()"}

    def answer(self, prompts: list[list[int]], new_tokens: int) -> Made:
        """See ``Prompts``."""
        torch = self._torch
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        found = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            min_new_tokens=new_tokens,  # an end token must not end the work
            max_new_tokens=new_tokens,
            pad_token_id=0,
        )
        return made(found[:, longest:].tolist())


def export(model: str, out: str) -> None:
    """Write the exporter's ONNX form of a transformers folder."""
    from optimum.onnxruntime import ORTModelForCausalLM

    ORTModelForCausalLM.from_pretrained(model, export=True).save_pretrained(out)


if __name__ == "__main__":
    if sys.argv[1:]:
        export(*sys.argv[1:])
    else:
        OptimumPeer().serve()

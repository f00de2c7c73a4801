"""Peer: llama.cpp's own server engine through a prebuilt wheel (xllamacpp), on the GGUF file of the same model.

One sequence a prompt, continuous batching without padding. Runs as ``python -m peers.llamacpp_peer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .serve import Made, Prompts


class LlamaCppPeer(Prompts):
    """``open``: gguf (file), kind (its type), slots (sequences at once), positions (most of one sequence), threads."""

    def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Prompts``."""
        import xllamacpp

        slots, threads = int(request["slots"]), int(request["threads"])
        params = xllamacpp.CommonParams()
        params.model.path = str(request["gguf"])
        params.n_parallel, params.n_ctx = slots, slots * int(request["positions"])
        params.n_batch = max(2048, int(request["positions"]))
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_prompt, params.warmup, params.fit_params = False, False, False
        self._server = xllamacpp.Server(params)
        kind = str(request["kind"])
        said = " ".join(xllamacpp.get_system_info().split())
        versions = {"xllamacpp": xllamacpp.__version__}
        return {"versions": versions, "compute": kind, "weights": kind, "how": f"{slots} slots; {said}"[:300]}

    def padded(self, lengths: list[int]) -> int:
        """Sequences of one batch are not padded."""
        return sum(lengths)

    def answer(self, prompts: list[list[int]], new_tokens: int) -> Made:
        """See ``Prompts``."""
        found = self._server.handle_completions(
            {
                "prompt": prompts,
                "n_predict": new_tokens,
                "temperature": 0.0,
                "samplers": ["temperature"],
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        choices = sorted(found.get("choices", []), key=lambda choice: int(choice["index"]))
        # Its usage counts one prompt only; "length" says that an answer has all the tokens it may have.
        if [choice["finish_reason"] for choice in choices] != ["length"] * len(prompts):
            raise RuntimeError(f"asked for {new_tokens} tokens for each of {len(prompts)}: {str(found)[:300]}")
        return Made([new_tokens] * len(prompts), texts=[choice["text"] for choice in choices])


if __name__ == "__main__":
    LlamaCppPeer().serve()

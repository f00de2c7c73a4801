"""Peer: transformers in PyTorch, eager or compiled, float32 or bfloat16.

Prompts are padded on the left; prefill asks for the last logits only. Runs as ``python -m peers.transformers_peer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .serve import Made, Prompts, made


class TransformersPeer(Prompts):
    """``open``: model (folder), dtype, compile, threads."""

    def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """See ``Prompts``."""
        import torch
        import transformers

        torch.set_num_threads(int(request["threads"]))
        dtype = getattr(torch, str(request["dtype"]))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            request["model"], dtype=dtype, attn_implementation="sdpa"
        )
        self._torch, self._model = torch, model.eval()
        self._forward = torch.compile(model.forward, dynamic=True) if request.get("compile") else model.forward
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        how = "torch.compile(dynamic=True)" if request.get("compile") else "eager"
        return {"versions": versions, "compute": request["dtype"], "weights": request["dtype"], "how": f"{how}, sdpa"}

    def answer(self, prompts: list[list[int]], new_tokens: int) -> Made:
        """See ``Prompts``."""
        torch = self._torch
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros(len(prompts), longest + new_tokens, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        out: list[Any] = []
        cache, start = None, 0
        with torch.inference_mode():
            while len(out) < new_tokens:
                stop = start + ids.shape[1]
                found = self._forward(
                    input_ids=ids,
                    attention_mask=mask[:, :stop],
                    position_ids=positions[:, start:stop],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                ids, cache, start = found.logits[:, -1].argmax(-1, keepdim=True), found.past_key_values, stop
                out.append(ids)
        return made(torch.cat(out, 1).tolist())


if __name__ == "__main__":
    TransformersPeer().serve()

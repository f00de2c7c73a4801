"""vLLM's own code on our payloads; started by test_their_parsers.py with vLLM on its path. Prints one JSON object.

A description of a few fields stands for the model's configuration, and the grammar engine, which no request here asks
for, is a name without content.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.inputs import EmbedsPrompt
from vllm.renderers.base import BaseRenderer
from vllm.renderers.embed_utils import safe_load_prompt_embeds
from vllm.renderers.inputs.preprocess import parse_dec_only_prompt
from vllm.renderers.online_renderer import OnlineRenderer


class Renderer(BaseRenderer):  # type: ignore[misc]
    """Its steps, without a tokenizer."""

    def __init__(self, model_config: Any) -> None:
        self.model_config = model_config

    async def render_messages_async(self, *args: Any) -> Any:
        raise NotImplementedError

    def render_messages(self, *args: Any) -> Any:
        raise NotImplementedError


def model_of(hidden: int) -> Any:
    return SimpleNamespace(
        enable_prompt_embeds=True,
        dtype=torch.float32,
        hf_text_config=SimpleNamespace(),
        get_hidden_size=lambda: hidden,
        is_encoder_decoder=False,
    )


def over_http(body: dict[str, Any], model: Any) -> dict[str, Any]:
    """As the completions entry point: the request, its prompts, the tensor, the engine's input."""
    request = CompletionRequest(**body)
    seen: list[Any] = []

    async def keep(_request: Any, prompts: Any, **_: Any) -> list[Any]:
        seen.extend(prompts)
        return []

    renderer = SimpleNamespace(preprocess_cmpl=keep)
    asyncio.run(OnlineRenderer.preprocess_completion(renderer, request, request.prompt, request.prompt_embeds))
    tensor = safe_load_prompt_embeds(model, seen[0])
    inputs = Renderer(model)._process_embeds(EmbedsPrompt(prompt_embeds=tensor))
    return {
        "prompts": len(seen),
        "type": inputs["type"],
        "rows": inputs["prompt_embeds"].tolist(),
        "max_tokens": request.max_tokens,
        "extra": sorted(request.model_extra or {}),
    }


def from_python(prompt: dict[str, Any], model: Any) -> dict[str, Any]:
    """As ``LLM.generate``: the dictionary, the engine's input."""
    given = {name: torch.tensor(value) if name == "prompt_embeds" else value for name, value in prompt.items()}
    assert set(given) <= set(EmbedsPrompt.__annotations__)
    inputs = Renderer(model)._process_embeds(parse_dec_only_prompt(given))
    return {
        "type": inputs["type"],
        "ids": inputs.get("prompt_token_ids"),
        "mask": inputs.get("is_token_ids"),
        "length": len(inputs["prompt_embeds"]),
    }


def tried(call: Any, *args: Any) -> dict[str, Any]:
    try:
        return dict(call(*args))
    except (VLLMValidationError, ValueError, TypeError) as e:
        return {"refused": f"{type(e).__name__}: {e}"[:300]}


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = model_of(asked["hidden"])
    answer = {
        "http": {name: tried(over_http, body, model) for name, body in asked["http"].items()},
        "python": {name: tried(from_python, prompt, model) for name, prompt in asked["python"].items()},
    }
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The reference itself: transformers in float32, run as plainly as possible.

Prompts of one call have one length, so that no padding, mask or position logic of ours or of theirs takes
part. torch and transformers are imported when called.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from .lora import Lora, merge
from .recorded import Recorded
from .sentences import SENTENCES

BATCH: Final = 16
NEW_TOKENS: Final = 8
PROMPTS: Final = 16
PROBES: Final = 4


def available() -> bool:
    """torch and transformers are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


def sentence_prompts(tokenizer: Path, bos: Sequence[int], count: int | None = None) -> list[list[int]]:
    """The first ``count`` (default PROMPTS) built-in sentences as prompts of one LLM."""
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))
    return [[*bos, *loaded.encode(text, add_special_tokens=False).ids] for text in SENTENCES[: count or PROMPTS]]


def even_groups(prompts: Sequence[Sequence[int]], size: int = BATCH) -> list[list[int]]:
    """Prompts sorted by length, each cut to the shortest of its group of ``size``; longer ones lose their end."""
    ordered = sorted((list(p) for p in prompts), key=len)
    groups = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return [p[: len(group[0])] for group in groups for p in group]


def measure(
    folder: Path,
    fingerprint: str,
    prompts: Sequence[Sequence[int]],
    *,
    new: int = NEW_TOKENS,
    probes: int = PROBES,
    lora: Lora | None = None,
) -> Recorded:
    """Run transformers in float32.

    Args:
        folder: model folder.
        fingerprint: of that model.
        prompts: token ids; cut to even groups.
        new: greedy tokens a prompt.
        probes: prompts whose hidden states are kept, spread over all lengths, at every position.
        lora: changes its weights.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    even = even_groups(prompts)
    # Eager attention is the formula itself; the fused kernels are somebody's optimisation of it.
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    merge(model, lora).train(False)
    with torch.inference_mode():
        runs = [_greedy(model, even[i : i + BATCH], new) for i in range(0, len(even), BATCH)]
        chosen = sorted({int(i) for i in np.linspace(0, len(even) - 1, min(probes, len(even)))})
        states = [_hidden(model, even[i]) for i in chosen]
    tokens, margins, logits = (np.concatenate(part) for part in zip(*runs, strict=True))
    return Recorded(
        _source() + (", with LoRA merged" if lora else ""),
        fingerprint,
        even,
        tokens,
        margins,
        np.arange(logits.shape[1], dtype=np.int64),
        logits,
        np.array([[p, t] for p in chosen for t in range(len(even[p]))], np.int64),
        np.arange(states[0].shape[2], dtype=np.int64),
        np.concatenate(states, axis=1),
    )


def _greedy(model: Any, prompts: list[list[int]], new: int) -> tuple[Any, Any, Any]:
    """Tokens [b,new], margins [b,new], logits after the prompt [b,V]. Does not stop at an end of text."""
    import torch

    ids, cache = torch.tensor(prompts), None
    tokens, margins, first = [], [], None
    for _ in range(new):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        scores, cache = out.logits[:, -1].float(), out.past_key_values
        first = scores if first is None else first
        best = scores.topk(2, dim=-1)
        ids = best.indices[:, :1]
        tokens.append(ids[:, 0])
        margins.append(best.values[:, 0] - best.values[:, 1])
    assert first is not None
    return torch.stack(tokens, 1).numpy(), torch.stack(margins, 1).numpy(), first.numpy()


def _hidden(model: Any, prompt: list[int]) -> Any:
    """Residual stream float32 [L+1,T,H]: the layers' own outputs, before the final norm."""
    import torch

    seen: list[Any] = []
    base = model.model
    hooks = [base.layers[0].register_forward_pre_hook(lambda _m, a, k: seen.append(_first(a, k)), with_kwargs=True)]
    hooks += [layer.register_forward_hook(lambda _m, _a, out: seen.append(_first((out,), {}))) for layer in base.layers]
    try:
        base(input_ids=torch.tensor([prompt]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([s[0] for s in seen]).float().numpy()


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = args[0] if args else kwargs["hidden_states"]
    return value[0] if isinstance(value, tuple) else value


def _source() -> str:
    import torch
    import transformers

    return f"transformers {transformers.__version__}, torch {torch.__version__}, float32, eager attention"

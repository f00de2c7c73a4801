"""Do the contenders compute the same thing? Greedy tokens of the same token prompts, compared.

In: a session after its rounds. Out: for each process how many of the prompts it continues as the yardstick does.
Libraries differ in what follows an end token (some forbid it while they must go on), so tokens are compared up to
the first one; prompts that start with it are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .launches import Launch
from .plan import Plan
from .session import Session

YARDSTICK: Final = "transformers fp32"
PROMPTS: Final = 50


def agreement(session: Session, plan: Plan) -> dict[str, dict[str, Any]]:
    """Process -> prompts compared, how many are the same, and with whom: transformers fp32, or our own first engine."""
    own = plan.own
    if not session.alive(own):
        return {}
    prompts = text_prompts(session.prepared[own.name])[:PROMPTS]
    replies = {launch: _ask(session, launch, prompts, plan) for launch in session.launches}
    given = {launch.name: reply for launch, reply in replies.items() if reply}
    yardstick = YARDSTICK if YARDSTICK in given else own.name
    if yardstick not in given:
        return {}
    stops = set(session.facts[own.name]["stops"])
    wanted = [_before(tokens, stops) for tokens in given[yardstick]["tokens"]]
    texts = session.ask(own, "decode", tokens=wanted)
    if texts is None:
        return {}
    return {
        name: {**compare(reply, wanted, texts["texts"]), "yardstick": yardstick}
        for name, reply in given.items()
        if name != yardstick
    }


def text_prompts(prepared: Mapping[str, Any]) -> list[list[int]]:
    """Token prompts with the whole text, without task rows."""
    pairs = zip(prepared["contexts"], prepared["questions"], strict=True)
    return [prepared["bos"] + context + question for context, question in pairs]


def compare(reply: Mapping[str, Any], wanted: Sequence[list[int]], texts: Sequence[str]) -> dict[str, int]:
    """How many answers begin as wanted: by tokens where the process gives them, else by text."""
    pairs: list[bool] = []
    for index, tokens in enumerate(wanted):
        if tokens and reply.get("tokens"):
            pairs.append(reply["tokens"][index][: len(tokens)] == tokens)
        elif tokens:
            pairs.append(reply["texts"][index].strip().startswith(texts[index].strip()))
    return {"prompts": len(pairs), "same": sum(pairs)}


def _ask(session: Session, launch: Launch, prompts: list[list[int]], plan: Plan) -> dict[str, Any] | None:
    batch = min(max(plan.batches), 8)
    if launch.own:
        return session.ask(launch, "check", prompts=prompts, new_tokens=plan.new_tokens, batch=batch)
    if session.ask(launch, "prepare", prompts={"check": prompts}) is None:
        return None
    wanted = {"workload": "check", "first": 0, "count": len(prompts), "batch": batch, "new_tokens": plan.new_tokens}
    return session.ask(launch, "run", **wanted)


def _before(tokens: list[int], stops: set[int]) -> list[int]:
    cut = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:cut]

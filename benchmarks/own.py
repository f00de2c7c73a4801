"""The measured process of our own runtime: any bundle, all workloads, through the public pipeline.

Speaks ``peers.serve``; runs as ``python -m latentwire.benchmarks.own``. The LLM's end tokens are taken out of the
bundle's description, so that every answer has the same number of tokens; a run that stops at them says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from ..core.errors import LatentWireError
from ..core.prompt import question_ids
from ..engines.base import Engine
from ..engines.opening import open_engine
from ..runtime.answer import Answer
from ..runtime.compress import Compressed
from ..runtime.encode import window
from ..runtime.options import CompressOptions, GenerateOptions
from ..runtime.pipeline import Pipeline, raised
from .counted import counted
from .forced import answer_nll, greedy
from .peers.serve import Stopwatch, serve

WORKLOADS: Final = ("W1", "W1-text", "W2", "W2-model", "W3")
"""Answer from frames; from texts; text to frame; its encoder alone; text to frame to answer."""


class Own:
    """Handlers of the protocol; one bundle, one list of samples."""

    def open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``open``: bundle, device, backend, threads; returns what runs."""
        watch = Stopwatch()
        chosen = {name: request[name] for name in ("device", "backend", "threads")}
        engine = open_engine(request["bundle"], verify=request.get("verify", "size"), **chosen)
        self._stops = engine.bundle.manifest.llm.eos
        self._engine, self._counted = counted(engine)
        self._pipe = Pipeline(self._engine)
        self._endless(True)
        manifest = engine.bundle.manifest
        facts = {
            "engine": engine.name,
            "versions": {name: version(name) for name in ("latentwire", "onnxruntime", "numpy", "tokenizers")},
            "model": manifest.llm.name,
            "compute": manifest.precision,
            "kv": manifest.llm.dtype,
            "bundle": manifest.fingerprint,
            "encoder": manifest.encoder.fingerprint,
            "latents": manifest.encoder.latents,
            "window": manifest.encoder.max_tokens,
            "task_tokens": manifest.adapter.task_tokens,
            "stops": list(self._stops),
            "shape": {
                "hidden": manifest.llm.hidden_size,
                "layers": manifest.llm.num_layers,
                "kv_heads": manifest.llm.num_kv_heads,
                "head_dim": manifest.llm.head_dim,
                "vocabulary": manifest.llm.vocab_size,
            },
        }
        self.facts = facts
        return {"facts": facts, **watch.read()}

    @property
    def engine(self) -> Engine:
        """The engine, counted."""
        return self._engine

    def close(self) -> None:
        """Free the engine."""
        self._pipe.close()

    def prepare(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``prepare``: samples [{text, question}], latents, codec, and whether to compress them now.

        Returns frame sizes, and prompts as token ids without latents or task rows: what a peer is given.
        """
        self._texts = [str(s["text"]) for s in request["samples"]]
        self._questions = [str(s["question"]) for s in request["samples"]]
        self._compress = CompressOptions(codec=request["codec"], latents=request["latents"], on_too_long="chunk")
        self._frames = self._pipe.compress(self._texts, self._compress) if request.get("compress", True) else []
        tokenizer, bos = self._pipe.tokenizer, list(self._engine.bundle.manifest.llm.bos)
        context = [tokenizer.encode(text) for text in self._texts]
        questions = [question_ids(tokenizer.encode, question) for question in self._questions]
        limit = self._engine.bundle.manifest.encoder.max_tokens
        ids = self._pipe.encoder_tokenizer.encode_all(self._texts)
        self._chunks = [chunk for found in ids for chunk in window(found, limit, "chunk").chunks]
        return {
            "frame_bytes": [len(frame) for frame in self._frames],
            "context": [len(c) for c in context],
            "bos": bos,
            "contexts": context,
            "questions": questions,
        }

    def run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``run``: workload, first, count, batch, new_tokens, one_by_one, until_stop."""
        at = [(int(request["first"]) + i) % len(self._texts) for i in range(int(request["count"]))]
        self._endless(not request.get("until_stop", False))
        work = partial(self._work, str(request["workload"]), int(request["batch"]), int(request["new_tokens"]))
        groups = [[i] for i in at] if request.get("one_by_one") else [at]
        self._counted.take()
        seconds: list[float] = []
        answers: list[Answer] = []
        watch = Stopwatch()
        for group in groups:
            start = time.perf_counter()
            answers += work(group)
            seconds.append(time.perf_counter() - start)
        taken, counts = watch.read(), self._counted.take()
        return {
            **taken,
            "new": [answer.new_tokens for answer in answers],
            "texts": [answer.text for answer in answers],
            "call_s": seconds,
            "counts": counts,
            "prompt_real": counts.get("prefill_real", 0),
            "prompt_padded": counts.get("prefill_padded", 0),
        }

    def check(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``check``: greedy tokens of given token prompts, in the engine alone: what peers are compared with."""
        tokens = greedy(self._engine, request["prompts"], int(request["new_tokens"]), int(request["batch"]))
        return {"tokens": tokens, "texts": [self._pipe.tokenizer.decode(found) for found in tokens]}

    def decode(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``decode``: token ids to texts, so that peers that return either can be compared."""
        return {"texts": [self._pipe.tokenizer.decode(list(map(int, found))) for found in request["tokens"]]}

    def quality(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """``quality``: answers from latents and from text that may stop, and nats a token of given answers."""
        self._endless(False)
        options = GenerateOptions(max_new_tokens=int(request["new_tokens"]), batch_size=int(request["batch"]))
        golds = [str(gold) for gold in request["golds"]]
        kinds: dict[str, Sequence[bytes] | Sequence[str]] = {"latents": self._frames, "full text": self._texts}
        out: dict[str, Any] = {}
        for kind, contexts in kinds.items():
            found = self._pipe.answers(contexts, self._questions, options)
            nll = answer_nll(self._pipe, contexts, self._questions, golds)
            out[kind] = {"answers": [a.text if isinstance(a, Answer) else "" for a in found], "nll": nll}
        return {"kinds": out}

    def _work(self, workload: str, batch: int, new_tokens: int, at: Sequence[int]) -> list[Answer]:
        texts, questions = [self._texts[i] for i in at], [self._questions[i] for i in at]
        options = GenerateOptions(max_new_tokens=new_tokens, stop=(), batch_size=batch)
        sending = replace(self._compress, batch_size=batch)
        if workload == "W1":
            return raised(self._pipe.answers([self._frames[i] for i in at], questions, options))
        if workload == "W1-text":
            return raised(self._pipe.answers(texts, questions, options))
        if workload == "W2":
            _raise_first(self._pipe.compress_rows(texts, sending))
            return []
        if workload == "W2-model":
            self._encode([self._chunks[i] for i in at], batch)
            return []
        if workload == "W3":
            return raised(self._pipe.answers(self._pipe.compress(texts, sending), questions, options))
        raise ValueError(f"unknown workload {workload}")

    def _encode(self, chunks: Sequence[list[int]], batch: int) -> None:
        """The encoder graph on tokens that are there already: scope ``model``."""
        latents = self._compress.latents or self._engine.bundle.manifest.encoder.latents
        order = sorted(chunks, key=len, reverse=True)
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            lengths = np.array([len(c) for c in part], np.int64)
            ids = np.zeros((len(part), int(lengths.max())), np.int64)
            for row, chunk in enumerate(part):
                ids[row, : len(chunk)] = chunk
            self._engine.encode(ids, lengths, latents)

    def _endless(self, wanted: bool) -> None:
        """Whether the bundle's end tokens count; the generator reads them from the description."""
        inner: Engine = self._counted._inner
        manifest = inner.bundle.manifest
        llm = replace(manifest.llm, eos=() if wanted else self._stops)
        inner.bundle = replace(inner.bundle, manifest=replace(manifest, llm=llm))
        self._pipe = Pipeline(self._engine) if llm != manifest.llm else self._pipe


def _raise_first(found: Sequence[Compressed | LatentWireError]) -> None:
    for row in found:
        if isinstance(row, LatentWireError):
            raise row


def main() -> None:
    """Serve until the input ends."""
    own = Own()
    handlers = {name: getattr(own, name) for name in ("open", "prepare", "run", "check", "decode", "quality")}
    serve(handlers)


if __name__ == "__main__":
    main()

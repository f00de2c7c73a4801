"""``latentwire demo``: the whole path on real documents, as its user would type it.

    models add -> export -> compress (one process) -> FILE -> generate (another process, bytes only) -> tables

Every step but the last is the command line in a process of its own; the last opens the bundle here, to answer
from the full texts and to time both paths on one engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, Final

from ..core.console import is_quiet, message, print_json, track
from ..core.errors import EXIT_OK, BundleError, EnvironmentFault
from ..core.files import atomic_write_bytes
from ..engines.bundle import read_bundle
from ..models.store import home
from .answer import Answer
from .demo_tables import Line, show, show_quality
from .options import CompressOptions, GenerateOptions, Machine
from .pipeline import Pipeline, raised
from .rates import Rate, alternate

FAST: Final = "int8"
EXACT: Final = "fp32"
"""Precisions of the decoder: on the CPU, and on other devices, which have no fast kernels for int8."""
FORM: Final = "2"
"""Raised when export makes something else of the same weights: older bundles still open, but are made again here."""


def run(llm: str, keep: Path | None, rounds: int, machine: Machine, as_json: bool) -> int:
    """Do it all and print it.

    Raises:
        EnvironmentFault: 5008 the folder to keep files in is not empty.
        SystemExit: with the status of a step that failed; the step has said why.
    """
    with ExitStack() as stack:
        work = _folder(keep) if keep else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latentwire-")))
        bundle = ready_bundle(llm, FAST if machine.device == "cpu" else EXACT)
        documents, questions = _read("documents.jsonl"), _read("questions.jsonl")
        answers, wire = send(bundle, work, machine)
        with Pipeline.open(bundle, verify="size", **asdict(machine)) as pipe:
            rates, full = time_paths(pipe, documents, questions, rounds)
            lines = compare(documents, questions, answers, full, wire)
            facts = _facts(pipe, rounds)
    quality = _reference().get("quality") or {}
    if as_json:
        rates_json = {name: asdict(rate) for name, rate in rates.items()}
        print_json({"rows": [asdict(x) for x in lines], "samples_per_minute": rates_json, "quality": quality, **facts})
    else:
        show(lines, rates, facts)
        show_quality(quality, llm)
    return EXIT_OK


def ready_bundle(llm: str, precision: str = FAST) -> Path:
    """The shipped checkpoint, exported for ``llm``; made once for each precision, verified every time."""
    meta = _reference()
    parts = [meta["encoder"]["fingerprint"], meta["adapters"].get(llm, {}).get("fingerprint", ""), FORM]
    key = hashlib.sha256("".join(parts).encode()).hexdigest()[:12]
    path = home() / "bundles" / f"reference-{llm.replace('/', '-').replace(':', '-')}-{precision}-{key}"
    try:
        read_bundle(path)
    except BundleError as e:
        if path.exists():
            message(f"{e}: exporting again")
        call("models", "add", llm)
        how = ["--precision", precision, "--measure", "none", *(["--overwrite"] if path.exists() else [])]
        call("export", "reference", "--llm", llm, "--out", str(path), *how)
    return path


def send(bundle: Path, work: Path, machine: Machine) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Compress in one process, answer in another. Returns answers and wire bytes by document."""
    atomic_write_bytes(work / "documents.jsonl", _data("documents.jsonl"))
    questions = [{k: q[k] for k in ("custom_id", "question")} for q in _read("questions.jsonl")]  # no answers
    atomic_write_bytes(work / "questions.jsonl", "".join(json.dumps(q) + "\n" for q in questions).encode())
    frames, at = work / "frames", ["--bundle", str(bundle)]
    at += ["--device", machine.device] if machine.device != "cpu" else []
    at += ["--engine", machine.backend] if machine.backend != "auto" else []
    call("compress", str(work / "documents.jsonl"), "--out", str(frames), *at, "--on-too-long", "chunk")
    (work / "documents.jsonl").unlink()  # from here on there are only bytes
    said = call("generate", str(frames), "--questions", str(work / "questions.jsonl"), *at, "--json")
    rows = json.loads(call("inspect", str(frames), "--json"))["shown"]
    answers = {a["custom_id"]: a for a in map(json.loads, said.splitlines())}
    return answers, {r["custom_id"]: r["wire_bytes"] for r in rows}


def compare(
    documents: list[dict[str, Any]],
    questions: list[dict[str, Any]],
    answers: dict[str, dict[str, Any]],
    full_answers: list[Answer],
    wire: dict[str, int],
) -> list[Line]:
    """Answers from the frames beside answers from the full texts."""
    by_id = {d["custom_id"]: d for d in documents}
    lines = []
    for question, full in zip(questions, full_answers, strict=True):
        name = question["custom_id"]
        document, sent = by_id[name], answers[name]
        lines.append(
            Line(
                document["title"],
                len(document["text"].encode()),
                wire[name],
                full.context_positions,
                sent["context_positions"],
                question["question"],
                question["answer"],
                sent["answer"],
                full.text,
            )
        )
    return lines


def time_paths(
    pipe: Pipeline, documents: list[dict[str, Any]], questions: list[dict[str, Any]], rounds: int
) -> tuple[dict[str, Rate], list[Answer]]:
    """Samples a minute of answering from frames, from full texts, and of compressing; answers from the full texts."""
    by_id = {d["custom_id"]: d["text"] for d in documents}
    texts = [by_id[q["custom_id"]] for q in questions]
    prompts = [q["question"] for q in questions]
    options = CompressOptions(on_too_long="chunk")
    frames = pipe.compress(texts, options)
    pipe.generate(frames[:1], prompts[:1])  # so that every graph is loaded before the clock runs
    full: list[Answer] = []
    paths = {
        "from latents": lambda: pipe.generate(frames, prompts),
        "from full text": lambda: full.extend(raised(pipe.answers(texts, prompts))),
        "compress": lambda: pipe.compress(texts, options),
    }
    with track("time both paths", len(paths) * rounds, "runs") as bar:
        rates = alternate(paths, len(texts), rounds, bar.advance)
    return rates, full[: len(texts)]


def call(*words: str) -> str:
    """Run one command line in a process of its own; its progress is shown, its result returned."""
    message("$ latentwire " + " ".join(words))
    if is_quiet() and words[0] != "inspect":
        words = (*words, "--quiet")
    done = subprocess.run([sys.executable, "-m", "latentwire.cli", *words], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        message(f"this step ended with status {done.returncode}")
        raise SystemExit(done.returncode)
    return done.stdout.decode()


def _facts(pipe: Pipeline, rounds: int) -> dict[str, Any]:
    llm = pipe.bundle.manifest.llm
    return {
        "engine": pipe.engine.name,
        "llm": llm.name,
        "precision": pipe.bundle.manifest.precision,
        "batch_size": GenerateOptions().batch_size,
        "max_new_tokens": GenerateOptions().max_new_tokens,
        "rounds": rounds,
        "cpu": _cpu(),
        "python": platform.python_version(),
    }


def _cpu() -> str:
    name = platform.processor() or platform.machine()
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            name = next((x.split(":", 1)[1].strip() for x in file if x.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {os.process_cpu_count() if hasattr(os, 'process_cpu_count') else os.cpu_count()} CPUs"


def _folder(path: Path) -> Path:
    if path.exists() and any(path.iterdir()):
        raise EnvironmentFault(5008, "folder is not empty", where=str(path), fix="choose another folder for --keep")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _reference() -> dict[str, Any]:
    """Metadata of the shipped checkpoint."""
    meta: dict[str, Any] = json.loads(resources.files("latentwire.reference").joinpath("meta.json").read_bytes())
    return meta


def _data(name: str) -> bytes:
    return resources.files("latentwire.runtime.demo_documents").joinpath(name).read_bytes()


def _read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _data(name).decode().splitlines()]

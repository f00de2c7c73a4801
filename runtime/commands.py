"""What the commands do once their options are read: run, print, and say how it went.

Result on stdout, progress and remarks on stderr. Returns exit codes; errors pass through to ``run_cli``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.console import message, print_json, print_table, track
from ..core.errors import EXIT_OK, EXIT_ROW_ERRORS, LatentWireError, RowError
from ..core.files import atomic_write_bytes, human_bytes
from .answer import Answer
from .ask import Answering, Result, ask
from .choices import Rule
from .ensemble import Chosen, Ensemble
from .inspection import inspect as inspect_path
from .jobs.questions import Question, read_questions
from .jobs.source import Source, open_source
from .options import GenerateOptions, Machine
from .pipeline import GENERATE_PARTS, Context, Pipeline


@dataclass(frozen=True)
class GenerateRun:
    """What to ask about what.

    Attributes:
        frames: folder, table or file.
        bundles: folders; several LLMs answer together.
        llms: names; each is one more bundle, of the shipped checkpoint, made if it is not there yet.
        questions: asked about every row.
        questions_file: JSONL of further ones, or None.
        out: file for the answers, or None.
        stream: print answers while they are made.
        rule: how several LLMs choose.
    """

    frames: Path
    bundles: tuple[Path, ...]
    llms: tuple[str, ...]
    questions: tuple[str, ...]
    questions_file: str | None
    out: Path | None
    stream: bool
    rule: Rule = "joint"


def generate(what: GenerateRun, options: GenerateOptions, machine: Machine, as_json: bool) -> int:
    """Ask, print or write the answers."""
    questions = [Question(None, q, "--question") for q in what.questions]
    questions += read_questions(what.questions_file) if what.questions_file else []
    source = open_source(what.frames)
    with ExitStack() as stack:
        opened = (Pipeline.open(path, parts=GENERATE_PARTS, **asdict(machine)) for path in _bundles(what, machine))
        pipes = [stack.enter_context(pipe) for pipe in opened]
        together = Ensemble(pipes, what.rule) if len(pipes) > 1 else None
        if what.stream:
            return _stream(together or pipes[0], source, questions, options)
        return _print_results(_asked(together or pipes[0], source, questions, options), what.out, as_json)


def _bundles(what: GenerateRun, machine: Machine) -> list[Path]:
    if not what.llms:
        return list(what.bundles)
    from .demo import EXACT, FAST, ready_bundle

    made = [ready_bundle(llm, FAST if machine.device == "cpu" else EXACT) for llm in what.llms]
    return [*what.bundles, *made]


def inspect(path: Path, as_json: bool) -> int:
    """Print what a file or folder is."""
    found = inspect_path(path)
    if as_json:
        print_json(found)
        return EXIT_OK
    tables = {k: found.pop(k) for k in ("files", "shown", "inputs") if isinstance(found.get(k), list)}
    print_table(["what", "value"], list(_flat(found)))
    for name, rows in tables.items():
        if rows:
            columns = list(dict.fromkeys(k for row in rows for k in row if k != "path"))
            print_table(columns, [[_cell(row.get(c)) for c in columns] for row in rows], title=f"\n{name}")
    return EXIT_OK


def engines(as_json: bool) -> int:
    """Print which engines are here."""
    from ..engines.available import available

    found = available()
    if as_json:
        for engine in found:
            print_json(asdict(engine))
    else:
        rows = [(e.name, e.options, "yes" if e.works else "no", e.detail) for e in found]
        print_table(["engine", "options", "here", "what runs it, or what is missing"], rows)
    return EXIT_OK


def result_json(result: Result) -> dict[str, Any]:
    """One line of the answers' JSONL."""
    line: dict[str, Any] = {"custom_id": result.custom_id, "question": result.question}
    if isinstance(result.outcome, LatentWireError):
        said = str(result.outcome).encode("utf-8", "backslashreplace").decode()
        return {**line, "error_code": result.outcome.label, "error_message": said}
    answer = result.outcome
    if isinstance(answer, Chosen):
        proposals = [{"llm": llm, "answer": text} for llm, text in answer.proposals]
        line |= {"proposals": proposals, "scores": answer.scores}
    counts = {"new_tokens": answer.new_tokens, "prompt_positions": answer.prompt_positions}
    return {
        **line,
        "answer": answer.text,
        "stop": answer.stop,
        **counts,
        "context_positions": answer.context_positions,
    }


def _asked(pipe: Answering, source: Source, questions: list[Question], options: GenerateOptions) -> Iterator[Result]:
    general = sum(q.row is None and not q.error for q in questions)
    special = sum(q.row is not None and not q.error for q in questions)
    total = None if source.count is None else source.count * general + special
    with track("generate", total, "answers") as bar:
        yield from ask(pipe, source.rows(), questions, options, bar.advance)


def _print_results(results: Iterator[Result], out: Path | None, as_json: bool) -> int:
    failed = 0
    kept: list[Result] = []
    for result in results:
        failed += isinstance(result.outcome, LatentWireError)
        if as_json and not out:
            print_json(result_json(result))
        else:
            kept.append(result)
    if out:
        lines = "".join(json.dumps(result_json(r), sort_keys=True, ensure_ascii=False) + "\n" for r in kept)
        atomic_write_bytes(out, lines.encode())
        message(f"{len(kept)} answers in {out}")
    elif not as_json:
        rows = [(r.custom_id, r.question, _shown(r)) for r in kept]
        print_table(["row", "question", "answer"], rows)
    return EXIT_ROW_ERRORS if failed else EXIT_OK


def _stream(pipe: Pipeline | Ensemble, source: Source, questions: list[Question], options: GenerateOptions) -> int:
    failed = 0
    for row in source.rows():
        for question in questions:
            if question.row not in (None, row.custom_id):
                continue
            try:
                if question.error or row.message is None:
                    raise question.error or RowError(2012, "row was not compressed", where=row.custom_id)
                if isinstance(pipe, Ensemble):
                    _stream_all(pipe, row.message, question.text, options)
                else:
                    _write(pipe.stream(row.message, question.text, options))
                    _write("\n")
            except LatentWireError as e:
                message(str(e))
                failed += 1
    return EXIT_ROW_ERRORS if failed else EXIT_OK


def _stream_all(together: Ensemble, context: Context, question: str, options: GenerateOptions) -> None:
    """A line for each LLM while it writes, then the chosen answer."""
    begins = True
    for event in together.stream(context, question, options):
        if isinstance(event, Chosen):
            _write([f"chosen: {event.text}\n"])
            continue
        name, piece = event
        _write([f"{name}: "] if begins else [])
        begins = isinstance(piece, Answer)
        _write(["\n" if isinstance(piece, Answer) else piece])


def _write(pieces: Iterable[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()


def _shown(result: Result) -> str:
    outcome = result.outcome
    return outcome.text if isinstance(outcome, Answer) else f"({outcome.label} {outcome.what})"


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _cell(value, key)


def _cell(value: object, key: str = "") -> str:
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, ensure_ascii=False)
    if key.endswith("bytes") and isinstance(value, int) and value >= 1000:
        return f"{value} ({human_bytes(value)})"
    return "" if value is None else str(value)

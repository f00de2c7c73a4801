"""What docs/server.md shows runs as it stands there, and says what the code says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from latentwire.runtime.server.settings import Limits

from .conftest import HTTP, Running


def test_the_examples_run(root: Path, server: Running) -> None:
    text = (root / "docs" / "server.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    said = io.StringIO()
    code = "\n".join(blocks).replace("http://127.0.0.1:8000/v1", server.url)
    with contextlib.redirect_stdout(said):
        exec(compile(code, "docs/server.md", "exec"), {})  # noqa: S102  our own page
    chat, completion = said.getvalue().splitlines()
    assert len(completion) == 16  # the same question about the same frame; completions are shorter by default
    assert chat.startswith(completion)


def test_the_defaults_are_those_of_the_code(root: Path) -> None:
    text, limits = (root / "docs" / "server.md").read_text(encoding="utf-8"), Limits()
    for words in (
        f"| `--max-body` | {limits.body_bytes >> 20} MiB |",
        f"all bodies together have {limits.bodies_bytes >> 20} MiB",
        f"| `--batch-size`, `--queue` | {limits.rows}, {limits.waiting} |",
        f"| `--max-tokens` | {limits.max_tokens:,} |",
        f"| `--connections` | {limits.connections:,} |",
        f"| `--idle` | {limits.head_s:g} s |",
        f"| `--timeout` | {limits.request_s:g} s |",
        f"| `--drain` | {limits.drain_s:g} s |",
    ):
        assert words in text


def test_prometheus_reads_the_metrics(server: Running) -> None:
    answer = HTTP.get(f"{server.root}/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert families["latentwire_answers_running"].type == "gauge"
    HTTP.get(f"{server.root}/never/heard/of")
    paths = {s.labels["path"] for f in text_string_to_metric_families(HTTP.get(f"{server.root}/metrics").text)
             for s in f.samples if f.name == "latentwire_requests"}  # fmt: skip
    assert "other" in paths
    assert not any("never" in path for path in paths)

"""Record what transformers answers, for machines without it.

python -m latentwire.export.golden smollm2-135m reference/golden-smollm2-135m.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from ..core.console import message, run_cli
from ..core.files import atomic_write_bytes
from ..models.store import resolve
from .families import read_config
from .recorded import Recorded, shrink, to_json
from .reference import measure, sentence_prompts
from .sentences import SENTENCES

CLEAR: Final = 0.02
"""Logit margin below which a prompt is not recorded: twenty times the tolerance."""


def record(name: str, out: Path) -> Recorded:
    """Run transformers on the built-in sentences and write the part that a small file holds."""
    import json

    llm = resolve(name)
    prompts = sentence_prompts(llm.tokenizer_path, read_config(llm.config, str(llm.path)).bos, len(SENTENCES))
    full = measure(llm.path, llm.fingerprint, prompts, probes=len(prompts))
    small = shrink(full, clear=CLEAR, probes=6, channels=32, logits=64)
    # One line: thousands of numbers, one a line, would drown every diff.
    atomic_write_bytes(out, (json.dumps(to_json(small), ensure_ascii=False, allow_nan=False) + "\n").encode())
    message(f"{out}: {len(small.prompts)} prompts of {len(full.prompts)} kept, {out.stat().st_size} bytes")
    return small


def main() -> int:
    """Command line: MODEL OUT."""
    record(sys.argv[1], Path(sys.argv[2]))
    return 0


if __name__ == "__main__":
    run_cli(main)

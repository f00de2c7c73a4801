"""Greedy tokens of another project's export of the same model, by any Python that has onnxruntime-genai and torch.

python genai_peer.py MODEL_FOLDER WORK_FOLDER NEW_TOKENS < prompts.json > tokens.json

Its builder writes attention, rotation and cache as operators of its own, from its own reading of the weights.
Nothing of LatentWire is imported here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def build(model: str, work: Path) -> Path:
    out = work / "exported"
    if not (out / "genai_config.json").is_file():
        words = ["-i", model, "-o", str(out), "-p", "fp32", "-e", "cpu", "-c", str(work / "cache")]
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", *words]
        subprocess.run(command, check=True, stdout=sys.stderr, timeout=1200)
    return out


def tokens(exported: Path, prompts: list[list[int]], new: int) -> list[list[int]]:
    """Shorter where the model ends its text."""
    import onnxruntime_genai as genai

    model = genai.Model(str(exported))
    found = []
    for prompt in prompts:
        options = genai.GeneratorParams(model)
        options.set_search_options(max_length=len(prompt) + new, do_sample=False)
        generator = genai.Generator(model, options)
        generator.append_tokens([prompt])
        said: list[int] = []
        while not generator.is_done() and len(said) < new:
            generator.generate_next_token()
            said.append(int(generator.get_next_tokens()[0]))
        found.append(said)
    return found


if __name__ == "__main__":
    exported = build(sys.argv[1], Path(sys.argv[2]))
    json.dump(tokens(exported, json.load(sys.stdin), int(sys.argv[3])), sys.stdout)

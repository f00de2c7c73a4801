"""SGLang's own ``GenerateReqInput`` on our payloads; started by test_their_parsers.py with SGLang on its path.

Importing it pulls in kernels for accelerators, which a CPU machine has no use for: those packages, and only they, are
replaced by names without content. What reads a request is SGLang's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def read(body: dict[str, Any]) -> dict[str, Any]:
    """As the server: the JSON body through the endpoint's type, then normalised into single requests."""
    from pydantic import TypeAdapter
    from sglang.srt.managers.io_struct import GenerateReqInput

    request = TypeAdapter(GenerateReqInput).validate_python(body)
    request.normalize_batch_and_arguments()
    singles = [request] if request.is_single else [request[i] for i in range(request.batch_size)]
    return {
        "batch": request.batch_size,
        "single": request.is_single,
        "rows": [one.input_embeds for one in singles],
        "sampling": [one.sampling_params for one in singles],
    }


def tried(body: dict[str, Any]) -> dict[str, Any]:
    try:
        return read(body)
    except (ValueError, TypeError, IndexError) as e:  # pydantic's is a ValueError
        return {"refused": f"{type(e).__name__}: {e}"[:300]}


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer = {name: tried(body) for name, body in asked.items()}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()

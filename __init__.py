"""LatentWire: a text becomes a few latent vectors once; frozen language models answer from them.

    import latentwire

    with latentwire.Pipeline.open("bundle") as pipe:
        frames = pipe.compress(["The bridge was opened in 1932."])
        print(pipe.generate(frames, ["When was the bridge opened?"])[0])

``PUBLIC`` names everything that is meant to be used from outside; the rest of the package may change. Commands:
``latentwire --help``. Importing this package imports no numpy, onnxruntime or torch: a name is imported when it
is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentwire.core.errors import LatentWireError as LatentWireError
    from latentwire.runtime.options import CompressOptions as CompressOptions
    from latentwire.runtime.options import GenerateOptions as GenerateOptions
    from latentwire.runtime.pipeline import Pipeline as Pipeline

__version__ = "0.1.0"

PUBLIC: dict[str, str] = {
    "Pipeline": "latentwire.runtime.pipeline",
    "CompressOptions": "latentwire.runtime.options",
    "GenerateOptions": "latentwire.runtime.options",
    "LatentWireError": "latentwire.core.errors",
}
"""Public name -> the module that holds it."""


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})

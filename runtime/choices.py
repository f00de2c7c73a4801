"""Option values with a fixed list of names. Imports nothing, so that the command line can name them cheaply."""

from __future__ import annotations

from typing import Literal

CodecName = Literal["f16", "i8", "fsq", "hybrid", "text"]
BackendName = Literal["auto", "ort", "trt", "torch-ref", "toy"]
TooLong = Literal["error", "truncate", "chunk"]
VerifyName = Literal["size", "full"]
RunnerName = Literal["local", "ray"]
OnPoison = Literal["bisect", "fail"]
Protect = Literal["both", "rule", "marks"]
Fallback = Literal["off", "size", "check"]
Rule = Literal["joint", "majority", "best"]

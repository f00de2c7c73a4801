"""Guard words are exact in every dtype that a cache may have."""

from __future__ import annotations

import ml_dtypes  # noqa: F401  # numpy learns the name bfloat16
import numpy as np
import pytest

from latentwire.core.errors import LatentError
from latentwire.engines.buffers import GUARD, SENTINEL, alloc_buffers
from latentwire.engines.bundle import LlmInfo

LLM = LlmInfo("x", "00", "llama", 16, 20, 2, 1, 8, 64, (0,), (1,), 1, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_guard_words(dtype: str) -> None:
    buffers = alloc_buffers(LLM, 2, 4, dtype)
    assert np.full(1, SENTINEL, dtype)[0] == SENTINEL
    buffers.check_guards()
    buffers.memory["past_v.1"][GUARD - 1] = 0
    with pytest.raises(LatentError, match=r"past_v\.1"):
        buffers.check_guards()

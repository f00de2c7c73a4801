"""A finished row takes a new prompt while its neighbours go on, and nobody notices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from latentwire.core.errors import LatentError
from latentwire.engines.base import Engine
from latentwire.engines.bundle import Bundle
from latentwire.engines.ort import OrtCpuEngine
from latentwire.engines.ort_cuda import OrtCudaEngine
from latentwire.engines.torch_ref import TorchRefEngine
from latentwire.export.drive import embed, greedy, lengths_of


def on_host(bundle: Bundle, *, threads: int) -> OrtCudaEngine:
    """The GPU engine's class without a GPU."""
    return OrtCudaEngine(bundle, device="cpu", threads=threads)


MAKERS: dict[str, Callable[..., Engine]] = {"ort-cpu": OrtCpuEngine, "ort-device": on_host, "torch-ref": TorchRefEngine}


@pytest.fixture(params=sorted(MAKERS))
def engine(request: pytest.FixtureRequest, tiny_decoder: Callable[[str], Bundle]) -> Engine:
    return MAKERS[request.param](tiny_decoder("llama-3.1"), threads=1)


def test_refilled_rows_and_their_neighbours(engine: Engine, byte_prompts: list[list[int]]) -> None:
    """Rows 1 and 2 of 5 are refilled after three steps; all tokens equal those of each prompt run alone."""
    first, fresh = byte_prompts[:5], byte_prompts[20:22]
    alone = [greedy(engine, [p], 7)[0].tolist() for p in (*first, *fresh)]
    buffers = engine.alloc(5, 64)
    engine.prefill(buffers, embed(engine, first), lengths_of(first))
    tokens: list[list[int]] = [[t] for t in buffers.next_token.tolist()]
    done: list[list[int]] = []
    for step in range(6):
        if step == 3:
            view = buffers.rows(1, 3)
            engine.prefill(view, embed(engine, fresh), lengths_of(fresh))
            view.check_guards()
            done, tokens[1:3] = tokens[1:3], [[t] for t in buffers.next_token[1:3].tolist()]
        engine.decode(buffers)
        for row, token in enumerate(buffers.next_token.tolist()):
            tokens[row].append(token)
    buffers.check_guards()
    assert [tokens[0], *tokens[3:]] == [alone[0], *alone[3:5]]
    assert done == [a[:4] for a in alone[1:3]]
    assert tokens[1:3] == [a[:4] for a in alone[5:7]]


def test_rows_are_the_same_memory(engine: Engine, byte_prompts: list[list[int]]) -> None:
    """What a view's prefill writes lies in its rows and nowhere else."""
    prompts = byte_prompts[:4]
    buffers = engine.alloc(4, 64)
    engine.prefill(buffers, embed(engine, prompts), lengths_of(prompts))
    before = {name: np.array(cache) for name, cache in buffers.cache.items()}
    lengths, logits = buffers.lengths.copy(), np.array(buffers.logits)
    engine.prefill(buffers.rows(2, 3), embed(engine, byte_prompts[30:31]), lengths_of(byte_prompts[30:31]))
    for name, cache in buffers.cache.items():
        same = [np.array_equal(before[name][row], cache[row]) for row in range(4)]
        assert same == [True, True, False, True], name
        after = len(byte_prompts[30])
        assert np.array_equal(before[name][2, :, after:], cache[2, :, after:]), name
    assert buffers.lengths.tolist() == [*lengths[:2], len(byte_prompts[30]), lengths[3]]
    assert [np.array_equal(logits[row], buffers.logits[row]) for row in range(4)] == [True, True, False, True]


def test_a_row_that_waits_never_runs_out_of_slots(engine: Engine, byte_prompts: list[list[int]]) -> None:
    """A done row that is set back to length 1 takes part for ever and disturbs nobody."""
    short, long = byte_prompts[1][:3], byte_prompts[2][:6]
    want = greedy(engine, [short], 8)[0].tolist()
    buffers = engine.alloc(2, 12)
    engine.prefill(buffers, embed(engine, [short, long]), lengths_of([short, long]))
    tokens = [int(buffers.next_token[0])]
    for _ in range(7):
        buffers.lengths[1] = 1
        engine.decode(buffers)
        tokens.append(int(buffers.next_token[0]))
    assert tokens == want
    buffers.check_guards()


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (-1, 1), (1, 5), (3, 2)])
def test_rows_outside_the_batch(engine: Engine, start: int, stop: int) -> None:
    with pytest.raises(LatentError) as caught:
        engine.alloc(4, 16).rows(start, stop)
    assert caught.value.code == 3002

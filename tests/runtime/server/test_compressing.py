"""The queue in front of the encoder: together what came together, and nothing waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from latentwire.core.errors import EnvironmentFault, LatentWireError, RowError
from latentwire.runtime.compress import Compressed
from latentwire.runtime.options import CompressOptions
from latentwire.runtime.pipeline import COMPRESS_PARTS, Pipeline
from latentwire.runtime.server.compressing import Compressing, Found
from latentwire.runtime.server.guard import Gate

I8, F16 = CompressOptions(), CompressOptions("f16")


class Counting(Pipeline):
    """Remembers how many texts each batch held."""

    batches: list[int]

    def compress_rows(
        self, texts: Sequence[str], options: CompressOptions = I8, names: Sequence[str] | None = None
    ) -> list[Compressed | LatentWireError]:
        self.batches.append(len(texts))
        return super().compress_rows(texts, options, names)


@pytest.fixture
def pipe(toy_bundle: Path) -> Counting:
    opened = Counting.open(toy_bundle, parts=COMPRESS_PARTS)
    assert isinstance(opened, Counting)
    opened.batches = []
    return opened


def frames(found: Found) -> list[bytes]:
    return [one.message.pack() for one in found if isinstance(one, Compressed)]


def test_requests_share_batches_and_get_their_own(pipe: Counting) -> None:
    queue, texts = Compressing(pipe, 100, Gate()), [f"Text number {i}." for i in range(12)]

    async def all_of_them() -> list[Found]:
        return await asyncio.gather(*(queue.run([text], F16 if i % 6 == 5 else I8) for i, text in enumerate(texts)))

    found = asyncio.run(all_of_them())
    queue.close()
    assert sum(pipe.batches) == 12
    assert len(pipe.batches) < 12
    with Pipeline.open(pipe.bundle.path, parts=COMPRESS_PARTS) as alone:
        wanted = [alone.compress([text], F16 if i % 6 == 5 else I8) for i, text in enumerate(texts)]
    assert [frames(one) for one in found] == wanted
    assert queue.waiting == 0


def test_a_bad_text_is_an_error_beside_good_ones(pipe: Counting) -> None:
    queue = Compressing(pipe, 100, Gate())
    good, bad = asyncio.run(queue.run(["Fine.", " "], I8))
    queue.close()
    assert isinstance(good, Compressed)
    assert isinstance(bad, RowError)
    assert "input 1" in str(bad)


def test_what_is_over_the_limit_is_refused_at_once(pipe: Counting) -> None:
    queue = Compressing(pipe, 3, Gate())

    async def three() -> None:
        with pytest.raises(EnvironmentFault) as refused:
            await queue.run(["a"] * 4, I8)
        assert refused.value.code == 5034
        assert len(await queue.run(["a"] * 3, I8)) == 3
        queue.close()
        with pytest.raises(EnvironmentFault) as closed:
            await queue.run(["a"], I8)
        assert closed.value.code == 5032

    asyncio.run(three())


def test_the_end_of_draining_ends_what_waits(pipe: Counting) -> None:
    gate = Gate()
    queue = Compressing(pipe, 100, gate)

    async def late() -> None:
        gate.cut.set()
        await queue.run(["a" * 60] * 50, I8)

    with pytest.raises(EnvironmentFault) as cut:
        asyncio.run(late())
    assert cut.value.code == 5032
    queue.close()
    assert queue.waiting == 0


def test_a_fault_of_ours_ends_one_batch_not_the_thread(pipe: Counting) -> None:
    queue = Compressing(pipe, 100, Gate())

    async def both() -> Found:
        with pytest.raises(AttributeError):
            await queue.run([None], I8)  # type: ignore[list-item]
        return await queue.run(["a"], I8)

    assert len(asyncio.run(both())) == 1
    queue.close()

"""The Ray backend on a cluster of three nodes in one machine: same bytes as without, one node lost on the way."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latentwire.core.console import configure
from latentwire.core.errors import LatentWireError
from latentwire.runtime.jobs.backend import Runner, open_backend
from latentwire.runtime.jobs.local import Patience
from latentwire.runtime.jobs.verify import verify_job
from latentwire.runtime.options import Machine

from .stub import contents
from .test_local import golden, run, texts

NODES = 3

# Ray's own files and sockets are closed by the garbage collector.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    *(
        pytest.mark.filterwarnings(f"ignore::{kind}")
        for kind in (
            "ResourceWarning",
            "DeprecationWarning",
            "FutureWarning",
            "pytest.PytestUnraisableExceptionWarning",
        )
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Head and two nodes of 8 processors each; this process is connected to it."""
    ray: Any = importlib.import_module("ray")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    store = {"num_cpus": 8, "object_store_memory": 80 << 20, "include_dashboard": False}
    found: Any = importlib.import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=store)
    found.others = [found.add_node(num_cpus=8, object_store_memory=80 << 20) for _ in range(NODES - 1)]
    ray.init(address=found.address, log_to_driver=False, configure_logging=False)
    found.wait_for_nodes(timeout=120)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture(autouse=True)
def quiet() -> None:
    configure(quiet=True)


def actors(workers: int = NODES, encoder: str = "open_encoder", **kw: Any) -> Any:
    from latentwire.runtime.jobs.ray_backend import RayActors

    kw.setdefault("patience", Patience(start_s=300.0, work_s=300.0))  # a test that hangs must end
    return RayActors(workers, encoder=f"rogue:{encoder}", **kw)


def test_same_bytes_though_a_node_is_lost(cluster: Any, tmp_path: Path) -> None:
    ray: Any = importlib.import_module("ray")
    name = texts(tmp_path, *((i, f"slow {i}") for i in range(0, 120, 2)), (7, ""), count=120)
    backend = actors()
    lost: list[float] = []

    class Losing:
        """Takes a node away when the first shard is done."""

        def run(self, *args: Any) -> Iterator[Any]:
            for event in backend.run(*args):
                if not lost:
                    where = {n["NodeID"] for n in ray.nodes() if n["Alive"]}
                    cluster.remove_node(cluster.others.pop(), allow_graceful=False)
                    lost.append(time.monotonic())
                    assert len(where) == NODES
                yield event

        def close(self) -> None:
            backend.close()

    run(name, tmp_path / "out", Losing(), shard_rows=6)
    assert lost
    assert contents(tmp_path / "out") == golden(name, tmp_path / "golden", 6)
    verify_job(tmp_path / "out")


@pytest.mark.usefixtures("cluster")
def test_5003_poison_on_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentwire.runtime.jobs.poison.TRIES", 1)
    name = texts(tmp_path, (2, "die"), count=4)
    manifest = run(name, tmp_path / "out", actors(2), shard_rows=2)
    assert manifest["totals"]["errors_by_code"] == {"LW-5003": 1}
    assert [s.get("poison") for s in manifest["shards"]] == [None, [0]]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("encoder", "code"), [("refuse", 5001), ("vanish", 5012)])
def test_5012_actors_that_do_not_start(tmp_path: Path, encoder: str, code: int) -> None:
    with pytest.raises(LatentWireError) as caught:
        run(texts(tmp_path), tmp_path / "out", actors(1, encoder))
    assert caught.value.code == code


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(("device", "code"), [("cuda", 5013), ("cuda:1", 2111)])
def test_5013_devices_that_the_cluster_has_not(tmp_path: Path, device: str, code: int) -> None:
    with pytest.raises(LatentWireError) as caught:
        run(texts(tmp_path), tmp_path / "out", actors(), machine=Machine(device))
    assert caught.value.code == code


def test_2111_options_that_do_not_go_together() -> None:
    for backend, workers, address in (("local", None, "auto"), ("ray", 0, None)):
        with pytest.raises(LatentWireError) as caught:
            Runner(backend, workers, address=address)  # type: ignore[arg-type]
        assert caught.value.code == 2111
    assert type(open_backend(Runner("ray"))).__name__ == "RayActors"


def test_the_command_line_brings_a_cluster_of_its_own(toy_bundle: Path, tmp_path: Path) -> None:
    name = texts(tmp_path)
    words = ["jobs", "run", name, "-b", str(toy_bundle), "--shard-rows", "9", "-q"]
    for out, more in (("none", ["--workers", "0"]), ("ray", ["--backend", "ray", "--workers", "2"])):
        command = [sys.executable, "-m", "latentwire.cli", *words, "-o", str(tmp_path / out), *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "none") == contents(tmp_path / "ray")


def test_a_pipeline_of_ray_data(cluster: Any, toy_bundle: Path) -> None:
    """The call of docs/jobs.md: actors open the bundle, every row comes back with the local frames or its error."""
    from latentwire.runtime.compress import Compressed
    from latentwire.runtime.jobs.map_batches import Compressor
    from latentwire.runtime.options import CompressOptions
    from latentwire.runtime.pipeline import COMPRESS_PARTS, Pipeline

    data: Any = importlib.import_module("ray.data")
    rows = [{"n": n, "text": "" if n % 10 == 3 else f"text {n}"} for n in range(60)]
    options = CompressOptions("f16")
    ds = data.from_items(rows, override_num_blocks=4).map_batches(
        Compressor, fn_constructor_args=(str(toy_bundle), options), batch_size=8, concurrency=2, batch_format="pyarrow"
    )
    found = {row["n"]: row for row in ds.take_all()}
    made = Pipeline.open(toy_bundle, parts=COMPRESS_PARTS).compress_rows(
        [str(row["text"]) for row in rows], options, [f"row {n}" for n in range(60)]
    )
    assert sorted(found) == list(range(60))
    for n, result in enumerate(made):
        if isinstance(result, Compressed):
            assert (found[n]["frames"], found[n]["error_code"]) == (result.message.pack(), None)
        else:
            assert (found[n]["frames"], found[n]["error_code"]) == (None, "LW-2005")

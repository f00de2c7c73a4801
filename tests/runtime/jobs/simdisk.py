"""A disk that forgets what was not synced: the worst that POSIX allows after a power cut.

``SimDisk`` runs every call on the real file system (without its slow fsync) and keeps beside it, for each file and
folder below ``root``, what is live and what is on the disk for certain. ``power_cut`` rebuilds ``root`` from that.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from latentwire.core import disk

LOST, NAMES, RANDOM = "lost", "names", "random"
"""Everything unsynced is lost; names and sizes are kept and bytes lost; each thing by the throw of a coin."""


class File:
    def __init__(self) -> None:
        self.live = b""
        self.synced = b""

    def sync(self) -> None:
        self.synced = self.live


class Folder:
    def __init__(self) -> None:
        self.live: dict[str, Node] = {}
        self.synced: dict[str, Node] = {}

    def sync(self) -> None:
        self.synced = dict(self.live)


Node = File | Folder


class SimDisk(disk.Calls):
    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = Folder()
        self.handles: dict[int, Node] = {}

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        handle = super().open(path, flags, mode)
        where = self._place(path)
        if where is not None:
            folder, name = where
            if name not in folder.live:
                folder.live[name] = File()
            self.handles[handle] = folder.live[name]
        elif Path(path) == self.root:
            self.handles[handle] = self.top
        return handle

    def write(self, handle: int, data: memoryview) -> int:
        taken = super().write(handle, data)
        node = self.handles.get(handle)
        if isinstance(node, File):
            node.live += bytes(data[:taken])
        return taken

    def fsync(self, handle: int) -> None:
        if handle in self.handles:
            self.handles[handle].sync()

    def close(self, handle: int) -> None:
        self.handles.pop(handle, None)
        super().close(handle)

    def rename(self, source: str, target: str) -> None:
        super().rename(source, target)
        old, new = self._place(source), self._place(target)
        assert old is not None
        assert new is not None
        new[0].live[new[1]] = old[0].live.pop(old[1])

    def unlink(self, path: str) -> None:
        super().unlink(path)
        self._forget(path)

    def mkdir(self, path: str) -> None:
        super().mkdir(path)
        where = self._place(path)
        assert where is not None
        where[0].live[where[1]] = Folder()

    def rmdir(self, path: str) -> None:
        super().rmdir(path)
        self._forget(path)

    def hang_up(self) -> None:
        """The process is gone: the system closes its files."""
        for handle in list(self.handles):
            self.handles.pop(handle)
            try:
                os.close(handle)
            except OSError:
                continue

    def power_cut(self, mode: str, rng: random.Random) -> None:
        """Rebuild ``root`` from what was on the disk for certain; that is all there is from now on."""
        for path in self.root.iterdir():
            shutil.rmtree(path)
        self._rebuild(self.top, self.root, mode, rng)

    def _rebuild(self, folder: Folder, path: Path, mode: str, rng: random.Random) -> None:
        if mode == LOST:
            kept = folder.synced
        elif mode == NAMES:
            kept = folder.live
        else:
            either = [(name, rng.choice([folder.live, folder.synced])) for name in {**folder.live, **folder.synced}]
            kept = {name: side[name] for name, side in either if name in side}
        folder.live, folder.synced = dict(kept), dict(kept)
        for name, node in kept.items():
            if isinstance(node, Folder):
                (path / name).mkdir()
                self._rebuild(node, path / name, mode, rng)
            else:
                node.live = node.synced = self._bytes(node, mode, rng)
                (path / name).write_bytes(node.live)

    def _bytes(self, node: File, mode: str, rng: random.Random) -> bytes:
        zeros = node.synced + bytes(len(node.live) - len(node.synced))
        half = node.live[: max(len(node.synced), len(node.live) // 2)]
        return {LOST: node.synced, NAMES: zeros}.get(mode) or rng.choice([node.synced, node.live, zeros, half])

    def _place(self, path: str) -> tuple[Folder, str] | None:
        if not Path(path).is_relative_to(self.root) or Path(path) == self.root:
            return None
        *above, name = Path(path).relative_to(self.root).parts
        folder = self.top
        for part in above:
            inner = folder.live[part]
            assert isinstance(inner, Folder)
            folder = inner
        return folder, name

    def _forget(self, path: str) -> None:
        where = self._place(path)
        if where is not None:
            where[0].live.pop(where[1])

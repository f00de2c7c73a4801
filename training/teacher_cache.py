"""What the text-prompted LLM said, kept on disk, so that no text is read by it twice.

    FOLDER/LLM/NAME.safetensors   keys u8 [E,32], sizes i64 [E], tokens i32 [N,k], log_p f16 [N,k]

An entry is one branch behind one text at one term's positions; a branch computes what it would compute alone, so it is
found again in any order and beside any others. A file is named by the SHA-256 of what it holds and is never changed.
All entries are held in memory while a run lasts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..core.errors import ModelError
from ..core.files import atomic_write_bytes
from .checkpoint import adapter_file, fingerprint
from .loss import TopLogits
from .tree import IGNORE, BranchKey, Tree

LARGEST: Final = 64 << 20
"""Bytes of new entries after which a file is written without waiting for a checkpoint."""
FIXED: Final = 40
"""Bytes of an entry beside its positions: key and size."""


def branch_keys(tree: Tree) -> tuple[BranchKey, ...]:
    """What identifies each branch of a tree behind full text, row by row, in the order of ``tree.scored``."""
    fields = [t.numpy() for t in (tree.ids, tree.row_index, tree.labels, tree.task)]
    asked = np.zeros(tree.ids.numel(), bool)
    asked[tree.asked.numpy()] = True
    asked = asked.reshape(tree.ids.shape)
    found = []
    for row, branch in enumerate(tree.branch.numpy()):
        text = hashlib.sha256(fields[0][row][branch == 0].tobytes())
        for number in range(1, int(branch.max()) + 1):
            own = branch == number
            digest = text.copy()
            digest.update(np.stack([field[row][own] for field in fields]).tobytes())
            scored = int((fields[2][row][own] != IGNORE).sum())
            found.append(BranchKey(digest.digest(), scored, int(asked[row][own].sum())))
    return tuple(found)


def position_bytes(top: int) -> int:
    """Bytes of one position: a token and its log-probability, ``top`` times."""
    return top * 6


class TeacherCache:
    """The teacher's best tokens for one LLM.

    Args:
        folder: of all LLMs; made when something is written.
        llm: name.
        facts: what the entries depend on beside the text; must be among those of the files that are there.

    Raises:
        ModelError: 3226 a file is damaged; 3227 it was made with other facts.
    """

    def __init__(self, folder: Path, llm: str, facts: Mapping[str, Any]) -> None:
        self.folder = folder / Path(adapter_file(llm)).stem.removeprefix("adapter-")
        self.facts = dict(facts)
        self.read = self.recalled = 0
        self.entries: dict[bytes, tuple[Tensor, Tensor]] = {}
        self._new: list[bytes] = []
        self._waiting = 0
        for path in sorted(self.folder.glob("*.safetensors")):
            self._read(path)

    def recall(
        self, keys: Sequence[BranchKey], terms: Sequence[str], device: torch.device
    ) -> dict[str, TopLogits] | None:
        """What was said of a micro-batch by term; None unless all of it is known."""
        found = {term: self.find(keys, term, device) for term in terms}
        known = {term: said for term, said in found.items() if said is not None}
        if len(known) < len(found):
            return None
        self.recalled += 1
        return known

    def keep(self, keys: Sequence[BranchKey], said: Mapping[str, TopLogits]) -> None:
        """Add what a teacher that read a whole micro-batch said of it."""
        self.read += 1
        for term, words in said.items():
            self.add(keys, term, words)

    def find(self, keys: Sequence[BranchKey], term: str, device: torch.device) -> TopLogits | None:
        """What was said at a term's positions of these branches, one after the other; None unless all are known."""
        names = [key.of(term) for key in keys if key.size(term)]
        if any(name not in self.entries for name in names):
            return None
        tokens, log_p = (torch.cat(parts) for parts in zip(*(self.entries[name] for name in names), strict=True))
        return TopLogits(tokens.long().to(device), log_p.float().to(device))

    def add(self, keys: Sequence[BranchKey], term: str, said: TopLogits) -> None:
        """Keep what was said at a term's positions of these branches; what is known already stays as it is."""
        sizes = [key.size(term) for key in keys if key.size(term)]
        names = [key.of(term) for key in keys if key.size(term)]
        # Copies: a part of a larger tensor would keep all of it.
        tokens, log_p = said.tokens.to("cpu", torch.int32), said.log_p.to("cpu", torch.float16)
        for name, *parts in zip(names, tokens.split(sizes), log_p.split(sizes), strict=True):
            if name not in self.entries:
                self.entries[name] = (parts[0].clone(), parts[1].clone())
                self._new.append(name)
                self._waiting += FIXED + len(parts[0]) * position_bytes(tokens.shape[1])
        if self._waiting > LARGEST:
            self.flush()

    def flush(self) -> None:
        """Write what is new; a run that goes on from here finds it.

        Raises:
            EnvironmentFault: 5004 and others as for any file.
        """
        if not self._new:
            return
        found = [self.entries[name] for name in self._new]
        tensors = {
            "keys": torch.frombuffer(bytearray(b"".join(self._new)), dtype=torch.uint8).reshape(-1, 32),
            "sizes": torch.tensor([len(tokens) for tokens, _ in found]),
            "tokens": torch.cat([tokens for tokens, _ in found]),
            "log_p": torch.cat([log_p for _, log_p in found]),
        }
        about = {"facts": json.dumps(self.facts, sort_keys=True), "fingerprint": fingerprint(tensors, self.facts)}
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(self.folder / f"{about['fingerprint'][:16]}.safetensors", save(tensors, about))
        self._new, self._waiting = [], 0

    def _read(self, path: Path) -> None:
        tensors, about = _tensors(path)
        facts = _facts(path, about)
        if about.get("fingerprint") != fingerprint(tensors, facts):
            raise _damaged(path, "its checksum differs")
        if different := sorted(n for n, own in self.facts.items() if facts.get(n) != own):
            name = different[0]
            raise ModelError(
                3227,
                f"teacher cache was made with another {name}",
                where=str(path),
                expected=f"expected {self.facts.get(name)!r}, got {facts.get(name)!r}",
                fix="use another folder for teacher_cache, or delete this one",
            )
        sizes = tensors["sizes"].tolist()
        names = [row.tobytes() for row in tensors["keys"].numpy()]
        pieces = zip(names, tensors["tokens"].split(sizes), tensors["log_p"].split(sizes), strict=True)
        self.entries.update((name, (tokens, log_p)) for name, tokens, log_p in pieces)


def _tensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            names: Iterator[str] = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise _damaged(path, str(e)) from e


def _facts(path: Path, about: Mapping[str, str]) -> dict[str, Any]:
    try:
        found = json.loads(about["facts"])
    except (KeyError, ValueError) as e:
        raise _damaged(path, "it does not say what it was made with") from e
    if not isinstance(found, dict):
        raise _damaged(path, "it does not say what it was made with")
    return found


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(3226, "teacher cache is damaged", where=str(path), expected=why, fix="delete this file")

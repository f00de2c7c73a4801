"""Where keys come from, and files that hold none."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentwire.core.errors import InputError
from latentwire.runtime.server.keys import read_keys


def test_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("# mine\n a \n\nb\n")
    assert read_keys(tmp_path / "keys") == ("a", "b")
    monkeypatch.setenv("LATENTWIRE_API_KEY", " c ")
    assert read_keys(None) == ("c",)
    monkeypatch.delenv("LATENTWIRE_API_KEY")
    assert read_keys(None) == ()


@pytest.mark.parametrize(("content", "code"), [(b"# none\n\n", 2104), (b"\xff\xfe", 2106), (None, 2106)])
def test_a_file_without_keys_is_never_an_open_server(tmp_path: Path, content: bytes | None, code: int) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_keys(tmp_path / "keys")
    assert refused.value.code == code

"""Shell completion: what the shells call, and the script as bash runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from latentwire.cli import COMMANDS

HIDDEN = {"parity"}


def shell(words: str, name: str, **env: str) -> list[str]:
    """What the program answers to a shell that completes ``words``."""
    code = "import sys; sys.argv[0] = 'latentwire'; from latentwire.cli import main; main()"
    told = {"_LATENTWIRE_COMPLETE": f"complete_{name}", "_TYPER_COMPLETE_ARGS": words, "COMP_WORDS": words}
    told["COMP_CWORD"] = str(len(words.split(" ")) - 1)
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **told, **env}, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in run.stderr
    return run.stdout.splitlines()


def test_bash_completes_commands_and_options() -> None:
    assert set(shell("latentwire ", "bash")) == set(COMMANDS) - HIDDEN
    assert shell("latentwire gen", "bash") == ["generate"]
    assert shell("latentwire models ad", "bash") == ["add"]
    assert shell("latentwire compress --rat", "bash") == ["--ratio"]


def test_zsh_completes_with_help() -> None:
    found = "\n".join(shell("latentwire mod", "zsh"))
    assert found.startswith("_arguments ")
    assert '"models":"Language models kept on this machine."' in found
    assert '"generate"' not in found


@pytest.mark.parametrize(("name", "registers"), [("bash", "complete -o default -F"), ("zsh", "compdef")])
def test_each_shell_has_its_script(name: str, registers: str) -> None:
    script = "\n".join(shell("", "", _LATENTWIRE_COMPLETE=f"source_{name}"))
    assert f"{registers} _latentwire_completion latentwire" in script


def test_installed_in_bash_it_works(tmp_path: Path) -> None:
    """The whole way: the script is installed, a new bash reads it, the key is pressed."""
    program = tmp_path / "bin" / "latentwire"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom latentwire.cli import main\nmain()\n")
    program.chmod(0o755)
    env = {**os.environ, "HOME": str(tmp_path), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    bash = shutil.which("bash")
    assert bash, "scripts/ needs it too"
    # Asked from a bash, so that the shell is recognised.
    install = subprocess.run(
        [bash, "-c", "latentwire --install-completion; true"], env=env, capture_output=True, text=True, check=False
    )
    assert (tmp_path / ".bashrc").is_file(), install.stdout + install.stderr
    press = (
        'source "$HOME/.bashrc"; COMP_WORDS=(latentwire ins); COMP_CWORD=1; '
        '$(complete -p latentwire | sed "s/.*-F \\([^ ]*\\) .*/\\1/") latentwire; echo "${COMPREPLY[@]}"'
    )
    run = subprocess.run([bash, "-c", press], env=env, capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["inspect"], run.stderr


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_accepts_the_script() -> None:
    shown = "\n".join(shell("", "zsh", _LATENTWIRE_COMPLETE="source_zsh"))
    run = subprocess.run(["zsh", "-n"], input=shown, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr

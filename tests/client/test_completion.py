"""Completion, in the shells that are installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run something that finds smpctl."""
    return subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["smpctl", "proc"], ["processors"]),
        (["smpctl", "vault", "o"], ["open"]),
        (["smpctl", "get", "--exp"], ["--export"]),
        (["smpctl", "nonsense", "x"], []),
    ],
)
def test_bash_completes(words: list[str], expected: list[str]) -> None:
    """What is printed is bash, and completes verbs, verbs below a noun, and options."""
    script = (
        'eval "$(smpctl completion bash)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _smpctl_completion smpctl; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = run("bash", "-c", script, "bash", *words)
    assert expected == done.stdout.split(), done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_theirs(shell: str) -> None:
    """It names the variable that the program answers to."""
    done = run("smpctl", "completion", shell)
    assert done.returncode == 0, done.stderr
    assert f"_SMPCTL_COMPLETE={shell}_complete" in done.stdout


def test_another_shell_is_refused() -> None:
    """With the ones there are."""
    done = run("smpctl", "completion", "tcsh")
    assert done.returncode == 2
    assert "bash" in done.stderr

"""The manual pages: whole, and roff."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from smpctl.cli import cli
from smpd.config import known_keys

ROOT = Path(__file__).parents[2]


def _pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("render_man", ROOT / "docs" / "render_man.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.pages())


PAGES = _pages()


def _shown(page: str) -> str:
    return PAGES[page].replace("\\-", "-").replace("\\fB", "").replace("\\fR", "")


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
@pytest.mark.parametrize("name", PAGES)
def test_groff_has_nothing_to_say(name: str) -> None:
    """No warning, with all of them on."""
    argv = ["groff", "-man", "-Tutf8", "-Kutf8", "-ww"]
    done = subprocess.run(argv, input=PAGES[name].encode(), capture_output=True, timeout=60)
    assert done.stderr == b""
    assert len(done.stdout) > 1000


def test_every_verb_and_option_is_in_the_page() -> None:
    """smpctl(1) has each verb with all of its own options."""
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        below = (
            [command.get_command(context, each) for each in command.list_commands(context)]
            if isinstance(command, click.Group)
            else [command]
        )
        for verb in below:
            path = name if verb is command else f"{name} {verb.name}"
            _, found, rest = _shown("smpctl.1").partition(f'.SS "smpctl {path}')
            assert found, path
            section = rest.partition("\n.S")[0]
            for option in verb.params:
                if isinstance(option, click.Option) and option.name not in ("as_json", "socket"):
                    assert option.opts[-1] in section, (path, option.opts)


def test_every_key_is_in_the_page() -> None:
    """smpd.toml(5) has each key of the configuration."""
    assert not [key for key in known_keys() if f".TP\n{key}\n" not in _shown("smpd.toml.5")]


def test_a_table_is_a_list() -> None:
    """The first column hangs, the last says it, one between is named."""
    assert ".TP\n8\nE (size: 8)\n" in _shown("smp-sealed.7")


def test_nothing_becomes_a_request() -> None:
    """No line of text begins like a request to roff, which would not show it."""
    known = {".TH", ".SH", ".SS", ".PP", ".TP", ".IP", ".RS", ".RE", ".nf", ".fi", ".nh", ".ad", "."}
    for name, page in PAGES.items():
        requests = [line for line in page.splitlines() if line.startswith((".", "'"))]
        assert not [line for line in requests if line.split()[0] not in known], name

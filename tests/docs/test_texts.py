"""What the texts say must be there: links, paths, verbs and error codes."""

import re
import runpy
import subprocess
from functools import cache
from pathlib import Path

import click
import pytest

from smp_proto.errors import CODES
from smpctl.__main__ import EXIT_INTERRUPTED, EXIT_PIPE
from smpctl.cli import cli

ROOT = Path(__file__).parents[2]
TEXTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "proto/*.md", "systemd/*.md", "container/*.md", "examples/*/*.md")
    for path in ROOT.glob(pattern)
)
SOURCES = sorted(path for room in ("smpd", "smpctl", "proto/smp_proto") for path in (ROOT / room).rglob("*.py"))

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
# A path of this repository in code font: a known folder first, and nothing that stands for something else.
_PATH = re.compile(r"`((?:smpd|smpctl|proto|tests|docs|systemd|container|examples|benchmarks|\.ci)/[A-Za-z0-9_./-]*)`")
_VERB = re.compile(r"(?<!from )\bsmpctl ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)*)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def _named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _anchors(text: Path) -> set[str]:
    """What the headings of a text are linked as."""
    headings = re.findall(r"^#+ (.*)$", text.read_text(), re.MULTILINE)
    kept = ("".join(char for char in each.strip().lower() if char.isalnum() or char in " -_") for each in headings)
    return {each.replace(" ", "-") for each in kept}


@cache
def _tracked() -> frozenset[str]:
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = {line for line in listed.stdout.splitlines() if (ROOT / line).exists()}
    return frozenset(files | {str(parent) for name in files for parent in Path(name).parents})


@pytest.mark.parametrize("text", TEXTS, ids=_named)
def test_links_lead_somewhere(text: Path) -> None:
    """Each relative link of a text leads to a file of the repository, and each anchor to a heading of it."""
    broken = []
    for link in _LINK.findall(_FENCE.sub("", text.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (text.parent / name).resolve() if name else text
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert not broken


def test_the_index_has_every_page() -> None:
    """docs/README.md links each page below docs."""
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in _LINK.findall(index.read_text())}
    assert {path for path in TEXTS if ROOT / "docs" in path.parents} - {index} - linked == set()


def test_codes_exist() -> None:
    """Each row of a guide's table whose first cell names error codes names real ones."""
    guide = (ROOT / "docs" / "guides" / "connecting-a-hospital.md").read_text().partition("## When something")[2]
    named = {
        code
        for row in guide.splitlines()
        if row.startswith("|")
        for code in re.findall(r"`([a-z]+_?[a-z_]+)`", row[: row.find("|", 1)])
    }
    assert len(named & set(CODES)) >= 4
    assert named - set(CODES) - {"doctor"} == set()


@pytest.mark.parametrize("text", TEXTS, ids=_named)
def test_paths_exist(text: Path) -> None:
    """Each path of the repository that a text names in code font is there."""
    assert [name for name in _PATH.findall(text.read_text()) if name.rstrip("/") not in _tracked()] == []


@pytest.mark.parametrize("text", TEXTS, ids=_named)
def test_programs_are_where_the_units_have_them(text: Path) -> None:
    """Of the environment in /opt/smp there is one, and each text names that."""
    assert re.findall(r"/opt/smp/(?!venv\b)\S*", text.read_text()) == []


def _unknown_verb(words: list[str]) -> str:
    """The part of a command line that is no verb, or nothing."""
    command: click.Command = cli
    for index, word in enumerate(words):
        if not isinstance(command, click.Group):
            return ""
        found = command.get_command(click.Context(command), word)
        if found is None:
            return " ".join(words[: index + 1])
        command = found
    return ""


def _typed(text: str) -> str:
    """What of a text is in code font or in a block."""
    indented = re.findall(r"^(?: {4}|\t)[^\n]*", rest := _FENCE.sub("", text), re.MULTILINE)
    return "\n".join([*_FENCE.findall(text), *indented, *re.findall(r"`([^`\n]+)`", rest)])


@pytest.mark.parametrize("text", TEXTS, ids=_named)
def test_verbs_exist(text: Path) -> None:
    """Each smpctl command that a text shows is one."""
    assert [bad for verb in _VERB.findall(_typed(text.read_text())) if (bad := _unknown_verb(verb.split()))] == []


@pytest.mark.parametrize("text", TEXTS, ids=_named)
def test_options_exist(text: Path) -> None:
    """Each option of a smpctl command that a text shows on one line is one of that verb's."""
    wrong = []
    for line in _typed(text.read_text()).splitlines():
        for part in re.split(r"[|;&#]", line):
            found = _VERB.search(part)
            if not found:
                continue
            command: click.Command = cli
            for word in found[1].split():
                if not isinstance(command, click.Group):
                    break
                command = command.get_command(click.Context(command), word) or command
            known = {
                name for owner in (command, cli) for each in owner.params for name in (*each.opts, *each.secondary_opts)
            } | {"--help"}
            wrong += [f"{found[0]} {option}" for option in _OPTION.findall(part) if option not in known]
    assert not wrong


def test_hints_name_verbs() -> None:
    """Each smpctl command that a hint or a docstring in the code shows is one."""
    wrong = []
    for source in SOURCES:
        text = source.read_text()
        for typed in re.findall(r"(?:run|with|see|shows?|then|:|`|\"|'|, )\s*(smpctl [a-z -]+)", text):
            for verb in _VERB.findall(typed):
                if bad := _unknown_verb(_trimmed(verb)):
                    wrong.append(f"{_named(source)}: smpctl {bad}")
    assert not wrong


def test_hints_can_be_typed() -> None:
    """Each smpctl command that the code shows comes with the options that its verb cannot do without.

    How to seal is told to who passes it on to the sender.
    """
    wrong = []
    for source in SOURCES:
        for line in source.read_text().splitlines():
            for verb, rest in re.findall(r"[:,`\"] smpctl ((?:[a-z]+ ?)+)([^;]*)", line):
                command: click.Command = cli
                for word in verb.split():
                    if isinstance(command, click.Group):
                        command = command.get_command(click.Context(command), word) or command
                needed = [each for each in command.params if isinstance(each, click.Option) and each.required]
                if command.name != "seal" and any(not set(each.opts) & set(rest.split()) for each in needed):
                    wrong.append(f"{_named(source)}: {line.strip()}")
    assert not wrong


def _trimmed(verb: str) -> list[str]:
    """The first words of a phrase that can be a verb: prose may follow it."""
    words = verb.split()
    command = cli.get_command(click.Context(cli), words[0])
    return words[:2] if isinstance(command, click.Group) else words[:1]


def test_every_error_code_is_documented() -> None:
    """docs/reference/errors.md holds each code once, below its family's exit code, with its meaning and whether it is retried."""
    documented = {}
    family = ""
    for line in (ROOT / "docs" / "reference" / "errors.md").read_text().splitlines():
        if found := re.match(r"## (\w+): exit code (\d+)", line):
            family = f"{found[1]} {found[2]}"
        elif found := re.match(r"\| `(\w+)` \| (yes|no) \| (.*) \|$", line):
            assert found[1] not in documented
            documented[found[1]] = (family, found[2] == "yes", found[3])
    expected = {
        code: (f"{each.family.__name__} {each.family.exit_code}", each.retryable, each.meaning)
        for code, each in CODES.items()
    }
    assert expected == documented


def test_every_verb_is_in_a_text() -> None:
    """Each verb of the command line, and each verb below a noun, is shown in some text."""
    shown = {" ".join(_trimmed(verb)) for text in TEXTS for verb in _VERB.findall(_typed(text.read_text()))}
    missing = []
    for name in cli.list_commands(click.Context(cli)):
        command = cli.get_command(click.Context(cli), name)
        below = command.list_commands(click.Context(command)) if isinstance(command, click.Group) else [""]
        missing += [verb for each in below if (verb := f"{name} {each}".strip()) not in shown]
    assert not missing


def test_every_exit_code_is_documented() -> None:
    """docs/reference/commands.md lists the exit code of each family of errors, and those of smpctl itself."""
    text = (ROOT / "docs" / "reference" / "commands.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    assert sorted({each.family.exit_code for each in CODES.values()} | {0, EXIT_INTERRUPTED, EXIT_PIPE}) == listed


def test_the_page_of_metrics_is_fresh() -> None:
    """docs/reference/metrics.md holds the metrics of the catalog; else run: python docs/render_metrics.py."""
    render = runpy.run_path(str(ROOT / "docs" / "render_metrics.py"))["render"]
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    assert render(page) == page

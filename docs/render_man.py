"""Writes the manual pages from the code and from the texts beside this file. Run: python docs/render_man.py FOLDER."""

import inspect
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

import click

from smp_proto import __version__
from smpctl.cli import cli

DOCS = Path(__file__).resolve().parent

SMPCTL = """
# Name

smpctl - move sealed objects between storage and this box

# Synopsis

**smpctl** [**--socket** PATH] [**--json**] VERB ...

# Options

{options}
# Verbs

{verbs}
# Exit status
{codes}

# Environment

| variable | |
|---|---|
| SMPD_SOCKET | The control socket, where **--socket** does not name one. |
| XDG_CONFIG_HOME | Keys are in smp/keys below it. |
| NO_COLOR | No colors. |

# See also

**smpd**(8), **smpd.toml**(5), **smp-sealed**(7)
"""

SMPD = """
# Name

smpd - the daemon of the Secure Media Processor

# Synopsis

**smpd** [**--config** FILE] [**run** | **check-config**]

# Description

smpd takes sealed objects from a bucket, an SFTP server or a folder to the device of this machine, runs processors over
them, and seals the results. It holds the keys, the jobs and the audit log; the network and the device belong to
processes of their own that it starts. It is spoken to by **smpctl**(1) over a Unix socket, and does nothing by itself.

# Options

| option | |
|---|---|
| **--config** FILE | The configuration. See **smpd.toml**(5) for where it is looked for otherwise. |
| **--version** | Print the version. |
| **run** | Run until SIGTERM or SIGINT. The default. |
| **check-config** | Print the effective configuration and where each value came from, and exit. |

# Signals

| signal | |
|---|---|
| SIGTERM | Let jobs end within jobs.drain_s, and stop. What has not ended goes on at the next start. |
| SIGINT, or a second SIGTERM | Stop at once. |
| SIGHUP | Read the configuration again, as **smpctl reload** does. Jobs go on. |
| SIGKILL | Loses nothing that was acknowledged. |

# Exit status

0 after SIGTERM or SIGINT; otherwise that of the error, as in **smpctl**(1).

# Environment

| variable | |
|---|---|
| SMPD_SECTION_KEY | Overrides a key of the configuration. |
| STATE_DIRECTORY, RUNTIME_DIRECTORY, CONFIGURATION_DIRECTORY, CREDENTIALS_DIRECTORY | As systemd sets them. |
| NOTIFY_SOCKET, WATCHDOG_USEC, LISTEN_FDS | systemd's service notification, watchdog and socket activation. |

# See also

**smpctl**(1), **smpd.toml**(5), **smp-sealed**(7), **systemd.exec**(5)
"""


def pages() -> dict[str, str]:
    """Every manual page, by its file name."""
    return {
        "smpctl.1": _page("smpctl", 1, _smpctl()),
        "smpd.8": _page("smpd", 8, SMPD),
        "smpd.toml.5": _page(
            "smpd.toml", 5, _text("reference/configuration.md", "smpd.toml - the configuration of smpd")
        ),
        "smp-sealed.7": _page("smp-sealed", 7, _text("../proto/SEALED.md", "smp-sealed - the sealed object of SMP")),
    }


def _text(name: str, purpose: str) -> str:
    body = (DOCS / name).read_text(encoding="utf-8").partition("\n")[2]
    return f"# Name\n\n{purpose}\n\n# Description\n{body.replace(chr(10) + '## ', chr(10) + '# ')}"


def _smpctl() -> str:
    verbs = ""
    for command, context in _leaves(cli, click.Context(cli, info_name="smpctl")):
        usage = " ".join(command.collect_usage_pieces(context))
        verbs += f"## {context.command_path} {usage}\n\n{inspect.cleandoc(command.help or '')}\n\n"
        verbs += _options(command, leave_out={"as_json", "socket"})
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    codes = text.partition("## Exit codes\n")[2].partition("\n## ")[0]
    return SMPCTL.format(options=_options(cli), verbs=verbs.replace("\b\n", ""), codes=codes)


def _leaves(group: click.Group, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        below = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _leaves(command, below)
        else:
            yield command, below


def _options(command: click.Command, leave_out: Collection[str] = ()) -> str:
    rows = []
    for option in command.params:
        if isinstance(option, click.Option) and option.name not in leave_out:
            names = ", ".join(f"**{name}**" for name in (*option.opts, *option.secondary_opts))
            value = "" if option.is_flag else f" {option.metavar or option.name}".upper()
            rows.append(f"| {names}{value} | {option.help or ''} |")
    return "\n".join(["| option | |", "|---|---|", *rows, "\n"]) if rows else ""


def _page(name: str, section: int, text: str) -> str:
    head = f'.TH {_escape(name.upper())} {section} "" "SMP {__version__}" "Secure Media Processor"'
    return "\n".join([head, ".nh", ".ad l", *_roff(text.splitlines())]) + "\n"


def _roff(lines: list[str]) -> Iterator[str]:
    """Markdown, as far as these texts use it, as roff."""
    at, code, heads = 0, False, [""]
    while at < len(lines):
        line = lines[at]
        at += 1
        if line.startswith("```"):
            code = not code
            yield ".RS 4\n.nf" if code else ".fi\n.RE"
        elif code or line.startswith("    "):
            yield from ([_escape(line)] if code else [".RS 4\n.nf", _escape(line[4:]), ".fi\n.RE"])
        elif found := re.match(r"(#+) (.*)", line):
            yield f'.{"SH" if len(found[1]) == 1 else "SS"} "{_inline(found[2]).replace(chr(34), chr(39))}"'
        elif line.startswith("|"):
            if at < len(lines) and lines[at].startswith("|-"):
                heads, at = _cells(line), at + 1
            else:
                yield from _row(heads, _cells(line))
        elif line.startswith("<!--"):
            continue
        elif found := re.match(r"[-*] (.*)", line):
            yield f".IP \\(bu 2\n{_inline(found[1])}"
        elif not line.strip():
            yield ".PP" if at < len(lines) and re.match(r"[^|#\s-]|\*\*", lines[at]) else "."
        else:
            yield _inline(line.strip())


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def _row(heads: list[str], cells: list[str]) -> Iterator[str]:
    """A row of a table: the first cell hangs, the last follows, those between are named by their column."""
    yield f".TP\n{_inline(cells[0])}"
    between = [f"{head}: {cell}" for head, cell in zip(heads[1:-1], cells[1:-1], strict=True) if cell]
    yield _inline(cells[-1] + (f" ({'; '.join(between)})" if between else "")) or "\\&"


def _inline(text: str) -> str:
    text = _escape(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("\\|", "|"))
    text = re.sub(r"\*\*([^*]+)\*\*", r"\\fB\1\\fR", text)
    return re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text)


def _escape(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in (".", "'") else text


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for page, roff in pages().items():
        (folder / page).write_text(roff, encoding="utf-8")

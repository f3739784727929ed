"""What every verb shares: the options, the client, and where output goes.

Results go to standard output; progress, notes and errors to standard error. With ``--json`` standard output
is one object, or one a line, of the protocol's structs.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from smp_proto.errors import NotFoundError, UsageError
from smp_proto.memory import forbid_dumps
from smpctl.client import Client
from smpctl.render import json_text, plain

_JOB_ID_LETTERS = 16


class Session:
    """The verb's client and its way of speaking."""

    def __init__(self, socket: str | None, as_json: bool) -> None:
        self.as_json = as_json
        self.client = Client(socket)

    def show(self, value: Any, human: Callable[[], object]) -> None:
        """A result: JSON (a list as one object a line), or what ``human`` prints."""
        if not self.as_json:
            human()
            return
        for each in value if isinstance(value, list | tuple) else [value]:
            self.json_line(each)

    def json_line(self, value: Any) -> None:
        """One object as a line of JSON, at once."""
        sys.stdout.write(json_text(value) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """A remark for a person, one line on standard error; it may hold names of others."""
        click.echo(plain(text), err=True)

    def resolve(self, prefix: str, ids: Iterable[str], what: str) -> str:
        """The one id that begins so.

        Raises:
            NotFoundError: none does.
            UsageError: several do.
        """
        found = [each for each in ids if each.startswith(prefix)] if prefix else []
        if prefix in found or len(found) == 1:
            return prefix if prefix in found else found[0]
        if found:
            hint = "type more of it: " + ", ".join(found[:5])
            raise UsageError("bad_request", f"{len(found)} {what}s begin with {prefix}", hint=hint)
        code, verb = {
            "job": ("no_such_job", "jobs"),
            "vault item": ("no_such_object", "vault ls"),
            "quarantine item": ("no_such_object", "quarantine ls"),
        }[what]
        raise NotFoundError(code, f"no {what} begins with {prefix!r}", hint=f"list them with: smpctl {verb}")

    def job_id(self, prefix: str) -> str:
        """A job's id from its beginning, or as it is where there is such a job. Raises as :meth:`resolve`."""
        if len(prefix) == _JOB_ID_LETTERS:  # a job whose record is damaged is listed nowhere
            with contextlib.suppress(NotFoundError):
                return self.client.job(prefix).id
        return self.resolve(prefix, [job.id for job in self.client.jobs(limit=10_000, begins=prefix)], "job")

    def vault_id(self, prefix: str) -> str:
        """A vault item's id from its beginning."""
        return self.resolve(prefix, [item.id for item in self.client.vault()], "vault item")

    def quarantine_id(self, prefix: str) -> str:
        """The id of an item of the quarantine from its beginning."""
        return self.resolve(prefix, [item.id for item in self.client.quarantine()], "quarantine item")


class Verb(click.Command):
    """A command with ``--json`` and ``--socket``; its function gets the session first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print JSON, one object a line."))
        self.params.append(click.Option(["--socket"], metavar="PATH", help="The daemon's control socket."))

    def invoke(self, ctx: click.Context) -> Any:
        """Run with a session instead of the two options.

        Raises:
            UsageError: ``bad_request``; something is given and empty, as with a variable that is not set: who set
                it meant something by it, and it must not do what it does where it is left out.
        """
        for level in (ctx.find_root(), ctx):
            for each in level.command.params:
                value = level.params.get(each.name or "")
                if (
                    not each.required
                    and "" in (value if isinstance(value, tuple) else (value,))
                    and _given(level, each)
                ):
                    hint = f"give it a value or leave it out; see: {ctx.command_path} --help"
                    raise UsageError("bad_request", f"{each.get_error_hint(level)} is empty", hint=hint)
        above: dict[str, Any] = ctx.find_root().params
        as_json = ctx.params.pop("as_json") or above.get("as_json", False)
        session = Session(ctx.params.pop("socket") or above.get("socket"), as_json)
        ctx.params["session"] = session
        with session.client:
            return super().invoke(ctx)


def _given(ctx: click.Context, parameter: click.Parameter) -> bool:
    source = ctx.get_parameter_source(parameter.name or "")
    return source is click.core.ParameterSource.COMMANDLINE


def verb(name: str | None = None) -> Callable[[Callable[..., Any]], Verb]:
    """Decorate a verb that stands alone."""
    return click.command(name, cls=Verb)


class VerbGroup(click.Group):
    """Verbs below a noun."""

    command_class = Verb


def secret_bytes(path: str, what: str) -> bytearray:
    """A passphrase, credential or secrets file, read into memory that can be wiped.

    Raises:
        NotFoundError: ``no_such_file``.
        UsageError: ``bad_request``; it is empty or over 64 KiB.
    """
    forbid_dumps()
    try:
        with open(path, "rb", buffering=0) as file:
            data = bytearray(1 << 16)
            size = 0
            with memoryview(data) as view:  # a pipe gives it in pieces
                while size < len(data) and (count := file.readinto(view[size:])):
                    size += count
            extra = file.read(1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise NotFoundError(
            "no_such_file", f"the {what} file {path} cannot be read: {reason}", hint="check the path"
        ) from None
    if not size or extra:
        raise UsageError("bad_request", f"the {what} file {path} is empty or over 64 KiB", hint="check the file")
    del data[size:]
    return data


def on_terminal(*fds: int) -> bool:
    """Whether all of these are terminals."""
    return all(os.isatty(fd) for fd in fds)


def location(text: str) -> str:
    """Check that something reads ``REMOTE:PATH``."""
    remote, colon, _path = text.partition(":")
    if not colon or not remote or "/" in remote:
        raise UsageError("bad_request", f"{text} is no REMOTE:PATH", hint="see the remotes with: smpctl remote list")
    return text


def shortest(ids: Sequence[str], least: int = 8) -> dict[str, str]:
    """Each id cut as short as leaves no two alike."""
    width = least
    longest = max(map(len, ids), default=0)
    while width < longest and len({each[:width] for each in ids}) < len(set(ids)):
        width += 1
    return {each: each[:width] for each in ids}

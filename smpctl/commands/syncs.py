"""Syncs: watch a prefix, and have a job made of every object that appears there."""

import re
from functools import partial
from typing import Literal, get_args

import click

from smp_proto.control import Priority, SyncShown, SyncSpec, SyncView
from smp_proto.errors import UsageError
from smpctl.commands.transfer import parameters, recipients
from smpctl.render import ago, duration, facts, moment, plain, table
from smpctl.session import Session, VerbGroup, location

_DIGITS_MAX = 10  # nobody waits for longer, and no clock can tell
_SHOWN = 40  # characters of what is no time
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


@click.group(cls=VerbGroup)
def sync() -> None:
    """Watch a prefix: every object that appears there, or changes, becomes a job."""


@sync.command()
@click.argument("name")
@click.argument("source", metavar="REMOTE:PREFIX")
@click.option("--run", "processor", metavar="PROCESSOR", help="What to run; without it objects go to the vault.")
@click.option("-p", "--param", "params", multiple=True, metavar="K=V", help="A parameter; V as JSON or as text.")
@click.option(
    "--to", "target", metavar="REMOTE:PREFIX", help="Where the sealed results go, under the paths of their objects."
)
@click.option("--vault", is_flag=True, help="Keep the results in the vault; so it is without --to.")
@click.option("--for", "keys", multiple=True, metavar="KEY", help="Who can open the results; else sender and box.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only these paths below the prefix; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not these; may be repeated.")
@click.option(
    "--every", default="30s", show_default=True, metavar="TIME", help="From the end of a listing to the next."
)
@click.option("--events", default="", metavar="URL", help="A queue of SQS to which the bucket sends notifications.")
@click.option(
    "--after",
    default="keep",
    show_default=True,
    metavar="ACT",
    help="What becomes of the object then: keep, delete, or move:PREFIX.",
)
@click.option("--priority", type=click.Choice(get_args(Priority)), default="normal", show_default=True)
@click.option("--max-in-flight", default=4, show_default=True, type=click.IntRange(1, 256), help="Jobs at once.")
def add(
    session: Session,
    name: str,
    source: str,
    *,
    processor: str | None,
    params: tuple[str, ...],
    target: str | None,
    vault: bool,
    keys: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    every: str,
    events: str,
    after: str,
    priority: Priority,
    max_in_flight: int,
) -> None:
    """Begin to watch REMOTE:PREFIX."""
    if vault and target:
        raise UsageError("bad_request", "--to and --vault say two things", hint="use one of them")
    act, moved_to = _afterwards(after)
    spec = SyncSpec(
        name=name,
        source=location(source),
        processor=processor or "",
        params=parameters(params),
        target=location(target) if target else "",
        recipients=recipients(session, keys),
        include=list(include),
        exclude=list(exclude),
        every_s=seconds(every),
        events=events,
        after=act,
        moved_to=moved_to,
        priority=priority,
        max_in_flight=max_in_flight,
    )
    found = session.client.sync_add(spec)
    session.show(
        found, lambda: click.echo(f"{name} watches {plain(found.spec.source)}; see it with: smpctl sync show {name}")
    )


def _afterwards(text: str) -> tuple[Literal["keep", "delete", "move"], str]:
    """What ``--after`` says: what is done, and where an object is moved to.

    Raises:
        UsageError: ``bad_request``.
    """
    if text == "keep":
        return "keep", ""
    if text == "delete":
        return "delete", ""
    act, _, prefix = text.partition(":")
    if act != "move" or not prefix:
        hint = "use keep, delete, or move:PREFIX, as in: --after move:done/"
        raise UsageError("bad_request", f"--after {text} says nothing", hint=hint)
    return "move", prefix


def _then(spec: SyncSpec) -> str:
    if spec.after == "move":
        return f"the object is moved to {spec.source.partition(':')[0]}:{spec.moved_to}"
    return "the object is deleted" if spec.after == "delete" else ""


def _told(view: SyncView) -> str:
    if not (view.told or view.hints or view.ignored):
        return ""
    by = "by the queue" if view.spec.events else "by the folder"
    ignored = f", {view.ignored} messages ignored" if view.ignored else ""
    return f"{by}, {view.hints} times{ignored}" + ("" if view.told else "; not at present")


def seconds(text: str) -> float:
    """A time such as ``30s``, ``5m``, ``1h``.

    Raises:
        UsageError: ``bad_request``.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|)", text.strip())
    if not found or len(found[1]) > _DIGITS_MAX:
        shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
        raise UsageError("bad_request", f"{shown} is no time", hint="for example: 30s, 5m, 1h")
    return float(found[1]) * _UNITS[found[2]]


@sync.command()
def ls(session: Session) -> None:
    """All syncs."""
    found = session.client.syncs()
    session.show(found, lambda: _table(found))


def _table(found: list[SyncView]) -> None:
    if not found:
        click.echo("Nothing is watched. Begin with: smpctl sync add NAME REMOTE:PREFIX")
        return
    rows = [
        (
            each.spec.name,
            _state(each),
            str(each.done),
            str(each.waiting + each.in_flight),
            str(each.failed + each.quarantined),
            duration(each.lag_s) if each.lag_s else "",
            each.spec.processor or "get",
            each.spec.source,
        )
        for each in found
    ]
    table(("name", "state", "done", "to do", "failed", "lag", "what", "where"), rows, right=(2, 3, 4))


def _state(view: SyncView) -> str:
    return "failing" if view.error and view.state == "active" else view.state


@sync.command()
@click.argument("name")
def show(session: Session, name: str) -> None:
    """One sync, and the objects that failed."""
    found = session.client.sync_show(name)
    session.show(found, partial(_show, found))


def _show(found: SyncShown) -> None:
    view = found.sync
    spec, error = view.spec, view.error
    rules = [*(f"+{each}" for each in spec.include), *(f"-{each}" for each in spec.exclude)]
    poll = "now" if view.listing else moment(view.next_poll) or "not while it is paused"
    facts(
        [
            ("name", spec.name),
            ("state", view.state),
            ("watches", spec.source + (f"  {' '.join(rules)}" if rules else "")),
            ("runs", " ".join([spec.processor, *(f"{k}={v}" for k, v in spec.params.items())]) or "get"),
            ("results", spec.target or "the vault"),
            ("then", _then(spec)),
            ("priority", spec.priority),
            ("owner", view.owner),
            ("made", ago(view.created)),
            ("seen", str(view.seen)),
            ("waiting", str(view.waiting)),
            ("in flight", f"{view.in_flight} of at most {spec.max_in_flight}"),
            ("done", f"{view.done}, {view.hour_done} of them in the last hour"),
            ("failed", f"{view.failed}, tried again later" if view.failed else "0"),
            (
                "quarantined",
                f"{view.quarantined}; try again with: smpctl sync retry {spec.name}" if view.quarantined else "0",
            ),
            ("gone", str(view.gone) if view.gone else ""),
            ("lag", duration(view.lag_s) if view.lag_s else "none"),
            ("listed", ago(view.last_poll) or "not yet"),
            ("next", f"{poll}, every {duration(spec.every_s)}"),
            ("told", _told(view)),
            ("error", f"{error.code}: {error.message}" if error else ""),
            ("hint", error.hint if error else ""),
        ]
    )
    if found.troubles:
        click.echo()
        rows = [
            (
                each.state,
                str(each.tries),
                each.job[:8],
                each.path,
                f"{each.error.code}: {each.error.message}" if each.error else "",
            )
            for each in found.troubles
        ]
        table(("state", "tries", "job", "path", "why"), rows, right=(1,))


def _control(
    session: Session, name: str, action: Literal["pause", "resume", "now", "retry", "remove"], said: str
) -> None:
    found = session.client.sync_control(name, action)
    session.show(found, lambda: click.echo(f"{name} {said}"))


@sync.command()
@click.argument("name")
def pause(session: Session, name: str) -> None:
    """Make no more jobs; those there are go on."""
    _control(session, name, "pause", "is paused")


@sync.command()
@click.argument("name")
def resume(session: Session, name: str) -> None:
    """Let a paused sync go on."""
    _control(session, name, "resume", "goes on")


@sync.command()
@click.argument("name")
def now(session: Session, name: str) -> None:
    """List at once."""
    _control(session, name, "now", "lists now")


@sync.command()
@click.argument("name")
def retry(session: Session, name: str) -> None:
    """Try what failed or was quarantined once more."""
    _control(session, name, "retry", "tries again what failed")


@sync.command()
@click.argument("name")
def remove(session: Session, name: str) -> None:
    """Forget a sync and what it had seen; its jobs and their results stay."""
    _control(session, name, "remove", "is forgotten")

"""Making this machine a box under systemd."""

import os
import sys
from typing import Literal

import click

from smp_proto.errors import UsageError
from smpctl import installing
from smpctl.render import plain

_WOULD = {installing.File: "write", installing.Gone: "remove"}


@click.command()
@click.option("--root", default="/", metavar="DIR", help="Write the files for another machine below DIR; run nothing.")
@click.option("--programs", metavar="DIR", help="Where smpd and smpctl are on that machine; default: beside this one.")
@click.option(
    "--compute",
    type=click.Choice(["spawn", "socket"]),
    default="spawn",
    show_default=True,
    help="Who starts compute processes: smpd, or systemd as another user.",
)
@click.option(
    "--credential/--no-credential",
    default=True,
    show_default=True,
    help="Unlock a new identity by a key that systemd-creds seals to this machine.",
)
@click.option("--start/--no-start", default=True, show_default=True, help="Enable and start the units.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
def setup(
    root: str, programs: str | None, compute: Literal["spawn", "socket"], credential: bool, start: bool, dry_run: bool
) -> None:
    """Make this machine a box: user, folders, units, socket, and the key of its identity.

    It can be run again: what is there stays, units of another version are replaced, the configuration never is.
    """
    for option, given in (("--root", root), ("--programs", programs)):
        if given == "":  # a variable that is not set must not have another machine's files made for this one
            raise UsageError("bad_request", f"{option} names no folder", hint="for this machine leave it out")
    folder = programs or os.path.dirname(os.path.abspath(sys.executable))
    options = installing.Options(os.path.realpath(root), folder, compute, credential, start)
    if options.here and not dry_run:
        installing.require_machine()
    for step in installing.plan(options):
        said = plain(installing.describe(step))
        if isinstance(step, installing.Note):
            click.echo(f"note: {said}")
        elif dry_run:
            click.echo(f"would {_WOULD.get(type(step), 'run')} {said}")
        else:
            became = installing.carry_out(step, options)
            click.echo(f"{said} {became}" if became else f"ran {said}")

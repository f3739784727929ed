"""The command line's table of contents; each verb's module is imported when it is called."""

from importlib import import_module
from typing import Any

import click

from smp_proto import __version__

# What a verb is for is said here as well, so that `smpctl --help` imports none of them.
VERBS: dict[str, tuple[str, str]] = {
    "status": ("box:status", "How the daemon is."),
    "top": ("top:top", "Jobs, workers, remotes and syncs, as they go."),
    "reload": ("box:reload", "Have the daemon read its configuration again."),
    "doctor": ("box:doctor", "What this box can and cannot do."),
    "keys": ("keys:keys", "Make, list, export and import keys."),
    "trust": ("trust:trust", "Whom the daemon believes."),
    "seal": ("sealing:seal", "Seal files for someone."),
    "open": ("sealing:open_", "Open a sealed file."),
    "inspect": ("sealing:inspect", "What a sealed file says of itself."),
    "rewrap": ("sealing:rewrap", "Seal a file for other recipients, without touching its content."),
    "remote": ("remotes:remote", "Storage servers: add, list, test, remove."),
    "ls": ("remotes:ls", "List the objects of a remote."),
    "mirror": ("mirror:mirror", "Keep a folder sealed in one or several remotes."),
    "put": ("transfer:put", "Seal files and upload them."),
    "get": ("transfer:get", "Bring an object into the vault, or export it."),
    "run": ("transfer:run", "Run a processor over an object."),
    "processors": ("box:processors", "The processors that are loaded."),
    "jobs": ("jobs:jobs", "List or watch the jobs."),
    "job": ("jobs:job", "One job: show, wait, pause, resume, cancel."),
    "events": ("jobs:events", "Print events as they happen."),
    "metrics": ("metrics:metrics", "What the daemon counts, for Prometheus."),
    "traces": ("traces:traces", "Where the time of jobs went, for OpenTelemetry."),
    "notify": ("notify:notify", "Tell somebody when something is wrong: try it."),
    "sync": ("syncs:sync", "Watch a prefix: every object becomes a job."),
    "vault": ("vault:vault", "What is kept on the box, sealed."),
    "quarantine": ("quarantine:quarantine", "What was refused, and why."),
    "audit": ("audit:audit", "Read and verify the audit log."),
    "setup": ("setup:setup", "Make this machine a box under systemd."),
    "completion": ("completion:completion", "Complete verbs and options in a shell."),
}


class LazyGroup(click.Group):
    """Imports the module of the verb that was asked for, and no other."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb, imported."""
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f"smpctl.commands.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb; the nearest one is named where there is none."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = import_module("difflib").get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"No such command {args[0]!r}{f'; did you mean {near[0]}?' if near else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of verbs, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="smpctl", message="%(prog)s %(version)s")
@click.option("--socket", metavar="PATH", help="The daemon's control socket.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
@click.pass_context
def cli(ctx: click.Context, /, **_options: Any) -> None:
    """Move sealed objects between storage and this box."""
    if ctx.invoked_subcommand is None:
        session = import_module("smpctl.session").Session(ctx.params["socket"], ctx.params["as_json"])
        with session.client:
            import_module("smpctl.commands.box").overview(session)

"""Completion of verbs and options in a shell."""

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete verbs and options.

    \b
    bash:  eval "$(smpctl completion bash)"            in ~/.bashrc
    zsh:   eval "$(smpctl completion zsh)"             in ~/.zshrc
    fish:  smpctl completion fish | source             in ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "smpctl", "_SMPCTL_COMPLETE").source())

"""`edgeq completion`: what makes a shell complete commands, options and their values."""

import os
from pathlib import PurePath

import click
from click.shell_completion import get_completion_class

from edgeq.commands.choices import Word

VARIABLE = "_EDGEQ_COMPLETE"
"""The environment variable by which the printed script asks edgeq for completions."""
PROGRAM = "edgeq"  # what shells complete by; behind `uv run` they complete for uv
SHELLS = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc, behind compinit",
    "fish": "~/.config/fish/completions/edgeq.fish",
}
"""Shells that are known, and where their users keep the script."""


@click.command(name="completion", short_help="Print the completion script of a shell.")
@click.argument("shell", type=Word(lambda: tuple(SHELLS)), required=False)
@click.pass_context
def completion_command(ctx: click.Context, shell: str | None) -> None:
    """Print the script that lets SHELL (bash, zsh or fish) complete edgeq's words.

    Put what it prints into ~/.bashrc, into ~/.zshrc behind compinit, or into
    ~/.config/fish/completions/edgeq.fish. Without SHELL, the one in the variable SHELL is meant.
    The command edgeq must then be found by its name.

    \b
    Examples:
      edgeq completion bash >> ~/.bashrc
      edgeq completion fish > ~/.config/fish/completions/edgeq.fish
    """
    name = shell or PurePath(os.environ.get("SHELL", "")).name
    if name not in SHELLS:
        received = f"shell {name!r} is not known" if name else "no shell is named"
        raise click.UsageError(f"{received}; give one of {', '.join(SHELLS)}", ctx)
    make = get_completion_class(name)
    assert make is not None, "click knows the shells of SHELLS"
    click.echo(make(ctx.find_root().command, {}, PROGRAM, VARIABLE).source())

"""How --help lists options and commands: in groups, what is used every day first."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from edgeq.commands.usage import command_hint

EVERYDAY = "everyday"
GROUPS = {
    EVERYDAY: "Everyday",
    "quality": "Quality and size",
    "text": "Calibration text",
    "output": "Output",
    "expert": "Expert",
}
"""The groups of options in their order, with their titles."""
NO_REWRAP = "\b\n"  # click leaves the lines of a paragraph behind this as they are
FIRST_COLUMN = 26  # columns of a terminal that options may take before their texts

Command = Callable[..., Any]


class GroupedOption(click.Option):
    """An option that belongs to one of the groups."""

    def __init__(self, *arguments: Any, group: str, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self.group = group


def grouped_option(*names: str, group: str, **rest: Any) -> Callable[[Command], Command]:
    """Make an option of a group, as `click.option` does."""
    assert group in GROUPS, f"no group of options is called {group!r}"
    return click.option(*names, cls=GroupedOption, group=group, **rest)


def group_of(param: click.Parameter) -> str | None:
    """Name the group of an option; None where it has none."""
    return getattr(param, "group", None)


class GroupedCommand(click.Command):
    """A command whose --help lists options by group, where they have one.

    Those of everyday use are described, the others named; --help-all describes all of them.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """List the parameters, with --help-all where there are groups."""
        params = super().get_params(ctx)
        if any(group_of(param) == EVERYDAY for param in params):
            params.insert(-1, SHOW_ALL)
        return params

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of the command line; what is wrong with them names this command."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each group that is described, and one with the names of others."""
        options = visible_options(self, ctx)
        by_group = {name: [o for o in options if group_of(o) == name] for name in GROUPS}
        width = max((len(_record(option, ctx)[0]) for option in options), default=0)
        if not by_group[EVERYDAY]:
            _write_section(formatter, "Options", [_record(o, ctx) for o in options], width)
            return
        everything = bool(ctx.meta.get(SHOW_ALL_KEY))
        for name, title in GROUPS.items():
            if everything or name == EVERYDAY:
                records = [_record(option, ctx) for option in by_group[name]]
                _write_section(formatter, title, records, width)
        if not everything:
            _write_names(formatter, ctx, by_group)
        rest = [_record(option, ctx) for option in options if group_of(option) is None]
        _write_section(formatter, "Help", rest, width)


def _write_names(
    formatter: click.HelpFormatter,
    ctx: click.Context,
    by_group: Mapping[str, Sequence[click.Option]],
) -> None:
    """Name the options of the groups that are not described."""
    named = {
        GROUPS[name]: ", ".join(option.opts[-1] for option in options)
        for name, options in by_group.items()
        if options and name != EVERYDAY
    }
    column = max(map(len, named), default=0)
    room = formatter.width - column - 4
    rows = [
        (title, NO_REWRAP + textwrap.fill(names, max(room, 30), break_on_hyphens=False))
        for title, names in named.items()
    ]
    _write_section(formatter, f"More, described by {ctx.command_path} --help-all", rows, column)


def visible_options(command: click.Command, ctx: click.Context) -> list[click.Option]:
    """List the options of a command that --help may show, in their order."""
    options = [param for param in command.get_params(ctx) if isinstance(param, click.Option)]
    return [option for option in options if option.get_help_record(ctx) is not None]


def _record(option: click.Option, ctx: click.Context) -> tuple[str, str]:
    record = option.get_help_record(ctx)
    assert record is not None
    return record


def _write_section(
    formatter: click.HelpFormatter, title: str, rows: Sequence[tuple[str, str]], width: int
) -> None:
    """Write rows with their first column at least so wide, so that sections stand in line."""
    if not rows:
        return
    column = min(width, FIRST_COLUMN)
    with formatter.section(title):
        padded = [(first.ljust(column), text) for first, text in rows]
        formatter.write_dl(padded, col_max=FIRST_COLUMN)


SHOW_ALL_KEY = "edgeq.commands.groups.everything"


def show_all(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Print the help of a command with its expert options, and end."""
    if not asked or ctx.resilient_parsing:
        return
    ctx.meta[SHOW_ALL_KEY] = True
    click.echo(ctx.get_help(), color=ctx.color)
    ctx.exit()


SHOW_ALL = click.Option(
    ["--help-all"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_all,
    help="Describe all options and exit.",
)


class SectionedGroup(click.Group):
    """The group of all commands, which --help lists in sections."""

    def __init__(self, *arguments: Any, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        self.sections: dict[str, list[str]] = {}

    def add_section(self, title: str, commands: Sequence[click.Command]) -> None:
        """Add commands that --help lists under a title."""
        self.sections[title] = [str(command.name) for command in commands]
        for command in commands:
            self.add_command(command)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command by its name, in any case of its letters.

        Raises: click.UsageError with what was probably meant.
        """
        name = args[0]
        known = self.commands.get(name.lower())
        if known is not None:
            return known.name, known, args[1:]
        if name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        hint = command_hint(name, self.list_commands(ctx))
        raise click.UsageError(f"there is no command {name!r}{hint}", ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands in the order of their sections."""
        return [name for names in self.sections.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section of each group of commands."""
        widest = max(map(len, self.list_commands(ctx)))
        limit = formatter.width - 6 - widest
        for title, names in self.sections.items():
            rows = [
                (name.ljust(widest), self.commands[name].get_short_help_str(limit))
                for name in names
            ]
            with formatter.section(title):
                formatter.write_dl(rows)

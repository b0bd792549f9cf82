"""The command line: the group of commands, and how it ends.

Each command has a file of its own, which imports everything heavy inside of the command, so that
--help answers at once.
"""

import sys

import click

from edgeq.commands.allocate import allocate_command
from edgeq.commands.chat import chat_command
from edgeq.commands.completion import VARIABLE, completion_command
from edgeq.commands.doctor import doctor_command
from edgeq.commands.evaluate import evaluate_command
from edgeq.commands.export import export_command
from edgeq.commands.failures import report_failure
from edgeq.commands.formats import formats_command
from edgeq.commands.generate import generate_command
from edgeq.commands.groups import SectionedGroup
from edgeq.commands.imatrix import imatrix_command
from edgeq.commands.inspect import inspect_command
from edgeq.commands.plain_text import write_what_can_be_encoded
from edgeq.commands.plan import plan_command
from edgeq.commands.quantize import quantize_command
from edgeq.commands.report import report_command
from edgeq.commands.signals import stopping_on_signals
from edgeq.commands.streams import open_what_is_closed
from edgeq.commands.tune import tune_command
from edgeq.commands.typed import program_words
from edgeq.commands.verify import verify_command
from edgeq.version import __version__
from edgeq.words import edgeq_command, print_commands_with


@click.group(
    cls=SectionedGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="edgeq")
def cli() -> None:
    """Make language models small enough for laptops and phones: solve once, export everywhere.

    \b
    Example:
      edgeq quantize demo --export gguf --evaluate
    """


SECTIONS = {
    "Everyday": (
        quantize_command,
        chat_command,
        generate_command,
        evaluate_command,
        export_command,
    ),
    "Look": (report_command, plan_command, inspect_command, formats_command, verify_command),
    "Expert": (tune_command, allocate_command, imatrix_command),
    "This installation": (doctor_command, completion_command),
}
"""The commands as --help lists them."""
for title, commands in SECTIONS.items():
    cli.add_section(title, commands)


def main() -> None:
    """Run the command line and exit: 0 done, 1 one line of an error, 2 usage, 128 + N signal N."""
    open_what_is_closed()
    write_what_can_be_encoded()
    print_commands_with(program_words())
    try:
        with stopping_on_signals():
            program = edgeq_command()
            sys.exit(cli.main(prog_name=program, complete_var=VARIABLE, standalone_mode=False))
    except SystemExit:
        raise
    except BaseException as error:  # also Ctrl-C and other signals
        sys.exit(report_failure(error))

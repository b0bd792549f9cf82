"""What is said when a command stops after its checkpoint is complete."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgeq.commands.typed import command_words

if TYPE_CHECKING:
    from edgeq.checkpoint.reader import Checkpoint


@contextmanager
def keeping(
    checkpoint: "Checkpoint", exports: Mapping[str, Sequence[str]], *, evaluated_against: str | None
) -> Iterator[None]:
    """Note on whatever stops the commands inside that the checkpoint stays, and how to continue.

    exports has the options of each format as words of the command line.
    """
    try:
        yield
    except BaseException as error:
        missing = [
            ["export", str(checkpoint.path), "--format", name, *words]
            for name, words in exports.items()
            if not (checkpoint.path / name).exists()
        ]
        if evaluated_against is not None:
            missing.append(["report", str(checkpoint.path), "--reference", evaluated_against])
        commands = ", then ".join(command_words(*command) for command in missing)
        note = f"the checkpoint {str(checkpoint.path)!r} is complete and stays"
        error.add_note(f"{note}; to continue: {commands}" if commands else note)
        raise

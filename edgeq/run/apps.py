"""Say with which commands people run an export, in each app that its format names."""

from collections.abc import Iterator
from pathlib import Path

from edgeq.files.names import safe_name
from edgeq.format_parts import apps_for
from edgeq.registry import find_format

Lines = list[list[str]]


def app_lines(format_name: str, path: str) -> Iterator[tuple[str, Lines]]:
    """Give each app that takes commands by its label, with the words of these commands.

    path is what a runtime is given, a file or a directory. Apps that need a file beside it are
    left out where it is not there.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    files = [each.name for each in folder.iterdir()]
    for app in apps_for(find_format(format_name).run_with, files):
        lines = list(app.lines(path=path, folder=str(folder), name=called_in_apps(path)))
        if lines:
            yield app.label, lines


def called_in_apps(path: str) -> str:
    """Name a model for apps that keep models by name, as Ollama does: small letters."""
    return safe_name(Path(path).stem).lower()

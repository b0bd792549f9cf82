"""Open models on disk: a safetensors directory, a GGUF file, a name on the hub, the built-in demo.

What a config means is read by `edgeq.architectures`.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from edgeq.errors import BadInput, NotInstalled
from edgeq.protocols import ModelSource
from edgeq.words import install

__all__ = ["at_revision", "needing_gguf", "open_source"]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
"""A model on the hub, perhaps with a branch, tag or commit: owner/name@revision."""
HUB_ADDRESS = re.compile(
    r"(?:https?://)?(?:huggingface\.co|hf\.co)/([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
)
"""The page of a model on the hub."""
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def open_source(model: str, *, also: str = "") -> ModelSource:
    """Open what the user calls MODEL, whatever kind of source it names.

    That is the word demo, a .gguf file, a directory of safetensors, or owner/name on the hub,
    perhaps with @ and a revision behind it. also names what else the caller takes, for a message.

    Raises: BadInput, UnsupportedModel or NotInstalled, each with one line.
    """
    # os.path answers False where Path would raise: over-long names, embedded null bytes.
    path = os.path.expanduser(model)
    if model == "demo":
        return open_demo()
    if os.path.isdir(path):
        return open_directory(Path(path))
    if os.path.lexists(path):
        return open_file(Path(path))
    if HUB_NAME.fullmatch(model):
        return open_hub_model(model)
    if model.endswith("@"):
        raise BadInput(
            f"{model!r} names no revision; give a branch, tag or commit behind @, or leave @ out"
        )
    raise BadInput(f"{model!r} does not exist; {what_to_give(model, also)}")


def what_to_give(model: str, also: str = "") -> str:
    """Say how a model is named that is neither here nor a name on the hub."""
    found = HUB_ADDRESS.match(model)
    if found:
        return f"give a model of the hub by its name: {found[1]}"
    usual = (
        f"give {also}a directory of safetensors, a .gguf file, a hub name as owner/name, or demo"
    )
    folder, name = os.path.split(os.path.expanduser(model))
    try:
        near = get_close_matches(name, os.listdir(folder or "."), n=1)
    except (OSError, ValueError):
        near = []
    if near:
        return f"did you mean {os.path.join(os.path.dirname(model), near[0])!r}? else {usual}"
    return usual


def open_demo() -> ModelSource:
    from edgeq.sources.demo import DEMO, find_demo  # noqa: PLC0415

    return open_gguf(find_demo(), name=DEMO.split("/")[1], repository=DEMO)


def open_directory(
    path: Path, *, name: str | None = None, repository: str | None = None
) -> ModelSource:
    from edgeq.sources.safetensors_directory import SafetensorsDirectory  # noqa: PLC0415

    return SafetensorsDirectory(path, name=name, repository=repository)


def open_file(path: Path) -> ModelSource:
    """Open what is no directory, which must be a GGUF file; for others say what to give instead."""
    suffix = path.suffix.lower()
    if suffix == ".gguf":
        return open_gguf(path)
    if suffix == ".safetensors":
        raise BadInput(
            f"{path} is one file of a checkpoint; give its directory, which also holds config.json"
        )
    if suffix in PICKLE_SUFFIXES:
        raise BadInput(
            f"{path} is a pickle checkpoint, which edgeq never loads; convert it to safetensors"
        )
    if suffix == ".json":
        raise BadInput(f"{path} is one file of a model; give its directory")
    raise BadInput(f"{path} is not a .gguf file; give a .gguf file or a directory of safetensors")


def open_gguf(path: Path, *, name: str | None = None, repository: str | None = None) -> ModelSource:
    with needing_gguf("reading GGUF files"):
        from edgeq.sources.gguf_file import GgufFile  # noqa: PLC0415
    return GgufFile(path, name=name, repository=repository)


@contextmanager
def needing_gguf(what: str) -> Iterator[None]:
    """Name what cannot be done where the gguf library is missing. Raises: NotInstalled."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise NotInstalled(f"{what} needs the package gguf; {install('gguf')}") from None


def open_hub_model(model: str) -> ModelSource:
    from edgeq.sources.hub import download  # noqa: PLC0415

    repository = model.partition("@")[0]
    return open_directory(download(model), name=short_name(model), repository=repository)


def at_revision(model: str, revision: str | None) -> str:
    """Name a model of the hub at a branch, tag or commit; None leaves the name as it is.

    Raises: BadInput for other models, and for a name that states a revision already.
    """
    if revision is None:
        return model
    name = f"{model}@{revision}"
    is_local = os.path.lexists(os.path.expanduser(model))
    if not is_local and HUB_NAME.fullmatch(model) and ("@" in model or not revision):
        raise BadInput(
            f"--revision {revision!r} with {model!r}: one revision is needed, a branch, tag or "
            "commit; give it once, or leave the option out"
        )
    if is_local or not HUB_NAME.fullmatch(name):
        raise BadInput(
            f"--revision {revision!r} with {model!r}: only a model on the hub has revisions; "
            "give owner/name, or leave the option out"
        )
    return name


def short_name(model: str) -> str:
    """Name a model of the hub without its owner and revision."""
    return model.partition("@")[0].split("/")[1]

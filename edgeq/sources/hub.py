"""Fetch checkpoints by name from the Hugging Face hub: what is read of them, and nothing else.

What they hold is read by `edgeq.sources.safetensors_directory`.
"""

from collections.abc import Sequence
from pathlib import Path

from edgeq.errors import BadInput
from edgeq.files.ownership import CARD_FILE, COMPANION_FILES
from edgeq.sources.refusals import SHARD_INDEX, SINGLE_FILE
from edgeq.sources.safetensors_directory import read_weight_map

LEGAL = ("LICEN*", "licen*", "Licen*", "*NOTICE*", "*Notice*", "COPYING*", "*USE_POLICY*")
DESCRIPTION = ("config.json", SHARD_INDEX, *COMPANION_FILES, CARD_FILE, *LEGAL)
"""All that is read but the weights: a few megabytes."""


def download(name: str) -> Path:
    """Fetch a checkpoint into the hub's cache, or find it there, and return its directory.

    Weights are those that the index of shards names, or the one file: a repository may hold others
    beside them, in other layouts and precisions.

    Raises: BadInput if the hub client is missing, the hub does not answer or does not have the
    model or the revision.
    """
    folder = download_description(name)
    weights = [SINGLE_FILE]
    if (folder / SHARD_INDEX).is_file():
        weights = sorted(set(read_weight_map(folder).values()))
    return fetch(name, weights)


def download_description(name: str) -> Path:
    """Fetch config, tokenizer and index of shards of a checkpoint, and return their directory.

    Raises: BadInput as `download`.
    """
    return fetch(name, DESCRIPTION)


def fetch(name: str, files: Sequence[str]) -> Path:
    """Fetch those of the named files that a repository has, or find them in the hub's cache.

    Raises: BadInput as `download`.
    """
    model, _, revision = name.partition("@")
    missing = f"{model!r} does not exist here"
    try:
        import huggingface_hub  # noqa: PLC0415
        from huggingface_hub.errors import (  # noqa: PLC0415
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ModuleNotFoundError:
        raise BadInput(
            f"{missing} and the hub cannot be asked; check the path or install huggingface_hub"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(
            model, revision=revision or None, allow_patterns=list(files)
        )
        return Path(folder)
    except GatedRepoError:
        raise BadInput(
            f"{model!r} asks for its licence to be accepted; "
            "do so on its page, then run: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise BadInput(
            f"the hub's {model!r} has no revision {revision!r}; give one of its branches or tags, "
            "or a commit"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise BadInput(
            f"{missing} and the hub has no such public model; check the path or the name"
        ) from None
    except OSError:  # every failure of the network or the hub derives from it
        raise BadInput(
            f"{missing} and the hub could not be reached; check the path or the network"
        ) from None

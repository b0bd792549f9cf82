"""Fetch checkpoints by name from the Hugging Face hub.

What they hold is read by `edgeq.sources.safetensors_directory`.
"""

from pathlib import Path

from edgeq.errors import BadInput

WANTED_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "LICENSE*",
)
UNWANTED_FILES = ["consolidated*", "original/*"]  # second copies of the weights in other layouts


def download(model: str) -> Path:
    """Fetch a checkpoint into the hub's cache, or find it there, and return its directory.

    Raises: BadInput if the hub client is missing, the hub does not answer or does not have the
    model.
    """
    missing = f"{model!r} does not exist here"
    try:
        import huggingface_hub  # noqa: PLC0415
        from huggingface_hub.errors import (  # noqa: PLC0415
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
        )
    except ModuleNotFoundError:
        raise BadInput(
            f"{missing} and the hub cannot be asked; check the path or install huggingface_hub"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(
            model, allow_patterns=list(WANTED_FILES), ignore_patterns=UNWANTED_FILES
        )
        return Path(folder)
    except GatedRepoError:
        raise BadInput(
            f"{model!r} asks for its licence to be accepted; "
            "do so on its page, then run: hf auth login"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise BadInput(
            f"{missing} and the hub has no such public model; check the path or the name"
        ) from None
    except OSError:  # every failure of the network or the hub derives from it
        raise BadInput(
            f"{missing} and the hub could not be reached; check the path or the network"
        ) from None

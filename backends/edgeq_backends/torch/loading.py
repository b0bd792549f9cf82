"""Load a directory by transformers' own loader, without a word on the screen."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from edgeq.errors import BadInput, reason_of
from edgeq_backends.torch.empty import quiet_library

ADAPTER_FILE = "adapter_config.json"  # where it lies, transformers loads the adapter on its own
SHOWN = 3  # names of tensors in an error; the first ones say what kind is missing


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, logs and warnings of libraries off the screen."""
    with quiet_library(), warnings.catch_warnings(), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        yield


def model_class(path: Path) -> Any:
    """Choose what loads a directory: a language model, or one that reads pictures beside text."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    known = type(config) in AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if known else AutoModelForImageTextToText


def load_directory(path: Path, *, mend: str, **options: Any) -> Any:
    """Load a model for predictions; nothing but safetensors is read, and no code of the model.

    mend says what to do about a directory that cannot be loaded.

    Raises: BadInput, also for an adapter, which may be a pickle, and where transformers would make
    up weights that no file holds.
    """
    if (path / ADAPTER_FILE).exists():
        raise BadInput(
            f"{str(path)!r} holds {ADAPTER_FILE!r}, and transformers would load that adapter too; "
            "remove it, or merge the adapter"
        )
    try:
        with quiet():
            loaded: Any = model_class(path).from_pretrained(
                path,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    # the library checks configs and files in many places, each with an exception of its own
    except Exception as error:
        raise BadInput(
            f"{str(path)!r}: transformers cannot load it "
            f"({type(error).__name__}: {reason_of(error)}); {mend}"
        ) from error
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        named = ", ".join(map(repr, missing[:SHOWN]))
        raise BadInput(
            f"{str(path)!r}: transformers finds no tensor {named} "
            f"({len(missing)} missing) and would make random weights up; {mend}"
        )
    return model.eval()

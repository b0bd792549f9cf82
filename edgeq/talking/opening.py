"""Open what a target names in its own runtime, so that it writes text."""

import math
import os

from edgeq.errors import BadInput, EdgeqError, NotInstalled, reason_of
from edgeq.measuring.foreign import Exported
from edgeq.measuring.targets import (
    check_runtime,
    choose_runtime,
    find_export,
    folder_of,
    open_model,
)
from edgeq.protocols import ModelDescription, ModelSource
from edgeq.registry import ACTIVATIONS, BACKENDS, SPEAKERS, choose_backend, device_of, find, load
from edgeq.sources import open_source
from edgeq.talking.speakers import Texts
from edgeq.talking.talker import Talker
from edgeq.talking.texts import DirectoryModel, TokenizerTexts
from edgeq.words import edgeq_command

DEMO = "demo"
FLOAT32_BYTES = 4
GIGABYTE = 1e9
EXAMPLE = "Once upon a time"
OWN_TEXTS = ("llama.cpp",)
"""Runtimes that find tokenizer and template inside of the file that they run."""


def open_talker(
    target: str, *, runtime: str | None = None, backend: str = "auto", chat: bool = False
) -> Talker:
    """Open a checkpoint, a model or an export, so that it continues texts and answers messages.

    An export runs in the runtime it is for, and so does a model in a GGUF file; everything else
    in the framework of the backend. With chat a model without a chat template is refused.

    Raises: BadInput, UnsupportedModel; NotInstalled where the runtime is missing.
    """
    backend = choose_backend(backend)
    exported = find_export(target) or exported_demo(target, runtime)
    chosen = choose_runtime(target, exported, runtime, backend)
    make = load(find(SPEAKERS, chosen, "runtime"), f"runtime {chosen!r}")
    check_runtime(chosen)
    if chosen in ACTIVATIONS:
        source = open_model(target) if exported is None else open_source(str(exported.path))
        texts: Texts = opened_texts(target, source, chat=chat)
        check_memory(source, backend)
        options = device_of(backend) if BACKENDS[backend].framework == chosen else {}
        return Talker(make(source, **options), texts, chosen)
    assert exported is not None
    if chosen in OWN_TEXTS:
        speaker = make(exported.path)
        check_template(target, speaker.texts, chat=chat)
        return Talker(speaker, speaker.texts, chosen)
    texts = opened_texts(target, DirectoryModel(folder_of(exported.path)), chat=chat)
    return Talker(make(exported.path), texts, chosen)


def check_memory(source: ModelSource, backend: str) -> None:
    """Refuse a model whose weights in float32 are more than the memory of this machine.

    Devices with a memory of their own say it themselves.

    Raises: BadInput.
    """
    memory = memory_of_machine()
    if backend == "cuda" or memory is None:
        return
    needed = FLOAT32_BYTES * sum(math.prod(source.shape(name)) for name in source.tensor_names())
    if needed > memory:
        raise BadInput(
            f"model {source.record.name!r} takes {needed / GIGABYTE:.1f} GB in float32, and this "
            f"machine has {memory / GIGABYTE:.1f} GB of memory; export it, and give the export"
        )


def memory_of_machine() -> int | None:
    """Count the bytes of this machine's memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def opened_texts(
    target: str, model: ModelDescription | DirectoryModel, *, chat: bool
) -> TokenizerTexts:
    """Open what a model says of its texts, before its weights are loaded.

    Raises: BadInput.
    """
    texts = TokenizerTexts(model)
    check_template(target, texts, chat=chat)
    return texts


def check_template(target: str, texts: Texts, *, chat: bool) -> None:
    """Refuse to chat with a model without a chat template.

    Raises: BadInput.
    """
    if chat and texts.template is None:
        raise BadInput(
            f"model {texts.name!r} has no chat template, so it answers no messages; have it "
            f"continue a text: {edgeq_command('generate', target, EXAMPLE)}"
        )


def exported_demo(target: str, runtime: str | None) -> Exported | None:
    """Find the file of the demo where llama.cpp can run it; a framework runs it elsewhere."""
    if target != DEMO or runtime in ACTIVATIONS:
        return None
    try:
        check_runtime("llama.cpp")
    except NotInstalled:
        if runtime is None:
            return None
        raise
    return Exported("gguf", open_source(DEMO).location())


def answer(target: str, prompt: str, most_tokens: int = 48) -> str:
    """Have a model answer one prompt, or continue it where the model has no chat template.

    The likeliest tokens are taken. Whatever goes wrong is an `EdgeqError`.

    Raises: EdgeqError.
    """
    try:
        with open_talker(target) as talker:
            reply = talker.reply(prompt, chat=talker.has_template, most_tokens=most_tokens)
            return "".join(reply)
    except EdgeqError:
        raise
    except Exception as error:
        raise BadInput(f"{target!r} cannot answer ({reason_of(error)})") from error

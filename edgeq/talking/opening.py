"""Open what a target names in its own runtime, so that it writes text."""

from edgeq.errors import BadInput, EdgeqError, NotInstalled, reason_of
from edgeq.measuring.targets import (
    Exported,
    check_runtime,
    choose_runtime,
    find_export,
    open_model,
)
from edgeq.protocols import ModelSource
from edgeq.registry import ACTIVATIONS, BACKENDS, SPEAKERS, choose_backend, device_of, find, load
from edgeq.sources import open_source
from edgeq.talking.speakers import Speaker, Texts
from edgeq.talking.talker import Talker
from edgeq.talking.texts import DirectoryModel, TokenizerTexts

DEMO = "demo"


def open_talker(target: str, *, runtime: str | None = None, backend: str = "auto") -> Talker:
    """Open a checkpoint, a model or an export, so that it continues texts and answers messages.

    An export runs in the runtime it is for, and so does a model in a GGUF file; everything else
    in the framework of the backend.

    Raises: BadInput, UnsupportedModel; NotInstalled where the runtime is missing.
    """
    backend = choose_backend(backend)
    exported = find_export(target) or exported_demo(target, runtime)
    chosen = choose_runtime(target, exported, runtime, backend)
    make = load(find(SPEAKERS, chosen, "runtime"), f"runtime {chosen!r}")
    check_runtime(chosen)
    if chosen in ACTIVATIONS:
        source = open_model(target) if exported is None else open_source(str(exported.path))
        return in_framework(source, chosen, backend)
    assert exported is not None
    folder = exported.path if exported.path.is_dir() else exported.path.parent
    # read first: a directory that states nothing is refused before its weights are loaded
    texts: Texts | None = None
    if chosen != "llama.cpp":
        texts = TokenizerTexts(DirectoryModel(folder))
    speaker = make(exported.path)
    return Talker(speaker, texts or speaker.texts, chosen)


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


def in_framework(source: ModelSource, framework: str, backend: str) -> Talker:
    """Open a source in a framework, on the backend's device if it has that one.

    Raises: BadInput for a model without tokenizer, UnsupportedModel.
    """
    texts = TokenizerTexts(source)
    options = device_of(backend) if BACKENDS[backend].framework == framework else {}
    speaker: Speaker = load(SPEAKERS[framework], "writing")(source, **options)
    return Talker(speaker, texts, framework)


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

"""Let a model write its own calibration text, and keep it in the user's cache for later runs.

How a token is drawn is up to the writer, which a backend contributes.
"""

import hashlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeq.calibration.windows import begin_ids, begun, length_of_text, load_tokenizer
from edgeq.decoder import Decoder
from edgeq.errors import BadInput, reason_of
from edgeq.files.storage import rename_when_stored
from edgeq.protocols import ModelDescription, ModelSource, TextWriter

CACHE_BYTES = 1 << 31  # keys and values of the windows that are written together
METHOD = 1  # part of what cached text is found by; raise it when the way of writing changes

Windows = npt.NDArray[np.int64]
MakeWriter = Callable[[ModelSource, Windows, int], TextWriter]
"""Makes a writer from a source, the ids that it may write, and a seed."""
Wrote = Callable[[int, int], None]
"""Is told how many tokens are written, and how many there will be."""


def written_windows(
    source: ModelSource,
    make_writer: MakeWriter,
    wrote: Wrote,
    *,
    framework: str,
    count: int,
    length: int,
    seed: int,
) -> Windows:
    """Read windows that the model wrote before under the same conditions, or have it write them.

    framework names what computes: the same seed need not give the same text elsewhere. Where the
    model's tokenizer begins a text with <bos>, so does each window; else with a random token.

    Shapes: (count, length).
    Raises: BadInput for a model without tokenizer or with broken predictions, or a cache that
    cannot be written to.
    """
    allowed, first = tokens_to_write(source)
    begin = begin_ids(source)
    tokenizer = hashlib.sha256(source.companions()["tokenizer.json"]).hexdigest()
    conditions = f"{METHOD} {source.fingerprint()} {tokenizer} {framework} {count} {length} {seed}"
    conditions += "".join(f" {id}" for id in begin)
    file = cache_directory() / f"self-{hashlib.sha256(conditions.encode()).hexdigest()[:32]}.npy"
    cached = read_cached(file, (count, length), int(allowed.max()))
    if cached is not None:
        return cached
    make_cache(file.parent)
    writer = make_writer(source, allowed, seed)
    if begin:  # what comes first is the model's own choice then
        rest = length_of_text(length, begin[:-1])
        written = write_windows(source, writer, wrote, np.full(count, begin[-1]), rest)
        windows = begun(written, begin[:-1])
    else:
        first = np.random.default_rng(seed).choice(first, count)
        windows = write_windows(source, writer, wrote, first, length)
    write_cached(file, windows)
    return windows


def tokens_to_write(source: ModelDescription) -> tuple[Windows, Windows]:
    """List the ids that text may hold, and those of them that it may start with.

    Text may hold those rows of the embedding that have a token, and starts with no special one.

    Raises: BadInput when nothing is left.
    """
    tokenizer = load_tokenizer(source)
    rows = source.record.vocabulary
    allowed = np.array(
        sorted(id for id in tokenizer.get_vocab(with_added_tokens=True).values() if id < rows),
        np.int64,
    )
    special = [id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special]
    first = np.setdiff1d(allowed, special)
    if not len(first):
        raise BadInput(
            f"model {source.record.name!r}: its tokenizer has only special tokens; "
            "calibrate on a text instead"
        )
    return allowed, first


def write_windows(
    source: ModelDescription, writer: TextWriter, wrote: Wrote, first: Windows, length: int
) -> Windows:
    """Continue first tokens to whole windows, as many together as the cache has room for.

    Shapes: first (count,) -> (count, length).
    """
    windows = np.empty((len(first), length), np.int64)
    windows[:, 0] = first
    together = texts_together(source.record.decoder, length)
    for start in range(0, len(first), together):
        batch = windows[start : start + together]
        tokens = writer.continue_text(batch[:, 0])
        # not strict: the writer never ends
        for position, column in zip(range(1, length), tokens, strict=False):
            batch[:, position] = column
            wrote(start * length + len(batch) * (position + 1), windows.size)
    return windows


def texts_together(decoder: Decoder, length: int) -> int:
    """Count the texts that are written together: what is drawn for one depends on the others."""
    return max(1, CACHE_BYTES // (length * bytes_per_token(decoder)))


def bytes_per_token(decoder: Decoder) -> int:
    """Count the bytes of keys and values in float32, over all blocks.

    Where the attention of a block is not described, they are taken to be as wide as hidden states.
    """
    widths = (
        decoder.hidden
        if layer.attention is None
        else layer.attention.key_heads * layer.attention.head_size
        for layer in decoder.layers
    )
    return sum(4 * 2 * width for width in widths)


def cache_directory() -> Path:
    """Name the directory where this system keeps what a user's programs can make again.

    XDG_CACHE_HOME wins everywhere.

    Raises: BadInput for a user without a home directory.
    """
    stated = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(stated):  # the specification has others ignored
        return Path(stated) / "edgeq"
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "edgeq" / "Cache"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise BadInput(
            "no home directory to keep self-written text in; set XDG_CACHE_HOME to a directory"
        ) from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "edgeq"


def make_cache(folder: Path) -> None:
    """Make the cache before the model starts to write.

    Raises: BadInput when it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = reason_of(error)
    if reason:
        raise BadInput(
            f"cache {str(folder)!r}: self-written text cannot be kept there ({reason}); "
            "set XDG_CACHE_HOME to another directory"
        )


def read_cached(file: Path, shape: tuple[int, int], largest: int) -> Windows | None:
    """Read the tokens in a file; None where it is missing or damaged."""
    try:
        found: Windows = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if not isinstance(found, np.ndarray) or found.shape != shape or found.dtype != np.dtype("<i4"):
        return None
    if found.min() < 0 or found.max() > largest:
        return None
    return found.astype(np.int64)


def write_cached(file: Path, windows: Windows) -> None:
    """Write tokens into a file, under a temporary name of this process's own until they are stored.

    Others may write the same text at the same time.
    """
    content = io.BytesIO()
    np.save(content, windows.astype("<i4"), allow_pickle=False)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.getvalue())
        rename_when_stored(partial, file)
    finally:
        partial.unlink(missing_ok=True)

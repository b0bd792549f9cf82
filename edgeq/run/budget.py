"""What a budget asks for, and how many bytes of weights it leaves.

How the bytes are spent is said by `edgeq.run.allocation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgeq.decoder import Attention, Decoder
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.planning.sizes import export_overhead
from edgeq.run.candidates import Container, weight_count
from edgeq.words import parse_size, show_megabytes

CACHE_BYTES = 2  # of a number in the cache of keys and values: float16, as runtimes have it
BATCH = 512  # tokens that llama.cpp computes at once
FLOAT_BYTES = 4
PROGRAM = 65 * 10**6  # bytes: the runtime itself, and what it keeps whatever the model
TOKEN = 400  # bytes that it keeps of each token of the vocabulary
MASK_BYTES = 6  # of each token of the batch for each of the context: in float32 and in float16
HEADERS = "headers and tokenizer"
"""The part of a budget that a file holds beside weights."""
FEWEST_BITS, MOST_BITS = 1.0, 16.0


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit as a user states it: one of a file, of bits per weight, or of a device's memory.

    Units: bytes; context in tokens.
    """

    file_size: int | None = None
    bits_per_weight: float | None = None
    fits: int | None = None
    context: int | None = None

    @property
    def asked(self) -> dict[str, Any]:
        """Give what was asked for, as reports state it."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None}

    def describe(self) -> str:
        """Write the limit as the command line states it, sizes in bytes."""
        return " ".join(
            f"--{name.replace('_', '-')} {value:g}"
            if isinstance(value, float)
            else f"--{name.replace('_', '-')} {value}"
            for name, value in self.asked.items()
        )

    def limit(self, container: Container, beside: Mapping[str, int]) -> int:
        """Count the bytes that weights may take, of which some are taken by what is beside them."""
        if self.bits_per_weight is not None:
            return int(self.bits_per_weight * weight_count(container.source) / 8)
        total = self.file_size if self.file_size is not None else self.fits
        assert total is not None
        return total - sum(beside.values())

    def beside(self, container: Container) -> dict[str, int]:
        """Count by part what a limit on files or memory has to hold beside weights."""
        if self.bits_per_weight is not None:
            return {}
        parts = {HEADERS: overhead(container)}
        if self.fits is not None:
            assert self.context is not None
            decoder = container.source.record.decoder
            parts["keys and values"] = cache_bytes(decoder, self.context)
            parts["runtime"] = runtime_bytes(decoder, self.context)
        return parts


def read_budget(options: Mapping[str, Any]) -> Budget | None:
    """Read a budget from the options of the command line; None where none was given.

    Raises: BadInput naming the option.
    """
    given = {name: options[name] for name in Budget.__slots__ if options.get(name) is not None}
    limits = [name for name in given if name != "context"]
    if len(limits) > 1:
        both = " and ".join(f"--{name.replace('_', '-')}" for name in limits[:2])
        raise BadInput(f"{both} are two budgets; give one of them")
    if "context" in given and "fits" not in given:
        raise BadInput("--context belongs to --fits SIZE; add it, or leave --context out")
    if "fits" in given and "context" not in given:
        raise BadInput("--fits needs --context N, the tokens that keys and values are kept of")
    if not given:
        return None
    bits, context = given.get("bits_per_weight"), given.get("context")
    if bits is not None and not FEWEST_BITS <= bits <= MOST_BITS:
        raise BadInput(
            f"--bits-per-weight {bits:g}: expected a number from {FEWEST_BITS:g} to {MOST_BITS:g}"
        )
    if context is not None and context < 1:
        raise BadInput(f"--context {context}: expected a number of tokens, 1 or more")
    sizes = {
        name: parse_size(given[name], f"--{name.replace('_', '-')}")
        for name in ("file_size", "fits")
        if name in given
    }
    return Budget(sizes.get("file_size"), bits, sizes.get("fits"), context)


def overhead(container: Container) -> int:
    """Count at most what files hold beside weights, in the format that has most."""
    return max((export_overhead(each, container.source) for each in container.exporters), default=0)


def cache_bytes(decoder: Decoder, context: int) -> int:
    """Count the cache of keys and values of a text, in float16.

    Where only some blocks have a window, these keep it and the tokens that are computed at once.
    Where all have one, llama.cpp keeps the whole context.

    Raises: UnsupportedModel where no block's attention is described.
    """
    attentions = [layer.attention for layer in decoder.layers if layer.attention]
    if not attentions:
        raise UnsupportedModel(
            f"--fits: the attention of model_type '{decoder.model_type}' is not described, so its "
            "keys and values cannot be counted; give --file-size or --bits-per-weight"
        )
    windows = len({each.window for each in attentions}) > 1
    return sum(
        2 * CACHE_BYTES * width(each) * (kept_tokens(each, context) if windows else context)
        for each in attentions
    )


def width(attention: Attention) -> int:
    """Count the numbers of a token's keys in one block; its values have as many."""
    return attention.key_heads * attention.head_size


def kept_tokens(attention: Attention, context: int) -> int:
    """Count the tokens whose keys and values a block keeps."""
    return context if attention.window is None else min(context, attention.window + BATCH)


def runtime_bytes(decoder: Decoder, context: int) -> int:
    """Estimate what llama.cpp takes beside weights and cache, as it reserves it at its start.

    Logits of a batch, hidden states with what a block makes of them, and the mask of attention.
    Scores of heads are not there: flash attention is on unless users turn it off.

    Measured with cyllama 0.2.18 on Linux, without a GPU: what the process grew by when it loaded
    a file without mapping it, and reserved when it made a context of 512, 4096 and 8192 tokens,
    less file and cache. A Llama of 256 columns and 2048 tokens took 66, 75 and 88 MB where this
    says 82, 93 and 106; SmolLM2-135M took 211, 206 and 206 where this says 215, 226 and 239. On
    a CPU less is ever written to: 55 and 80 MB after 4096 tokens were read.
    """
    states = 2 * (4 * decoder.hidden + 3 * decoder.inner)
    of_token = FLOAT_BYTES * (decoder.vocabulary + states) + MASK_BYTES * context
    return PROGRAM + TOKEN * decoder.vocabulary + BATCH * of_token


def infeasible(
    budget: Budget, container: Container, beside: Mapping[str, int], smallest: int
) -> BadInput:
    """Make the error of a budget that is too small, with the smallest one that would do."""
    if budget.bits_per_weight is not None:
        fewest = 8 * smallest / weight_count(container.source)
        return BadInput(
            f"--bits-per-weight {budget.bits_per_weight:g} is too little: the smallest types take "
            f"{fewest:.3f}; raise it to {-(-fewest * 100 // 1) / 100:.2f} or more"
        )
    option = "--file-size" if budget.file_size is not None else "--fits"
    asked = budget.file_size if budget.file_size is not None else budget.fits
    assert asked is not None
    parts = ", ".join(f"{part} {show_megabytes(size)}" for part, size in beside.items())
    least = show_megabytes(smallest + sum(beside.values()), up=True)
    return BadInput(
        f"{option} {show_megabytes(asked)} is too little: the smallest types take "
        f"{show_megabytes(smallest)}, {parts}; raise it to {least} or more"
    )

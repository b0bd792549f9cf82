"""Say what a model is, as plain data: the description that everything reads instead of a config.

`edgeq.architectures` makes it from a config, once, when a model is opened. Nothing here computes.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from edgeq.types import LinearSpec

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: its kind ("default", "linear", "llama3" ...), base, and what scales it.

    part is the share of a head's columns that is rotated.
    """

    kind: str
    theta: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    part: float = 1.0


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one block: heads, rotary embedding, window.

    window: how many tokens, itself included, a token attends to; None for all. head_norms: queries
    and keys pass a norm of their own, head by head, before they are rotated.
    """

    heads: int
    key_heads: int
    head_size: int
    rope: Rope
    window: int | None = None
    head_norms: bool = False


@dataclass(frozen=True, slots=True)
class Mlp:
    """Feed-forward part of one block: down(activation(gate(x)) * up(x))."""

    inner: int
    activation: str


@dataclass(frozen=True, slots=True)
class Norm:
    """A root-mean-square norm: the name of its weight in the block, and its width."""

    tensor: str
    width: int


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder block; names are those inside of the block.

    sites are the linear layers in execution order, those that read one input together.
    """

    attention: Attention
    mlp: Mlp
    sites: tuple[tuple[LinearSpec, ...], ...]
    norms: tuple[Norm, ...]

    @property
    def linears(self) -> tuple[LinearSpec, ...]:
        """List all linear layers in execution order."""
        return tuple(linear for site in self.sites for linear in site)

    def tensor_shapes(self) -> dict[str, Shape]:
        """Give the shape of every tensor of the block: each weight with its bias, then norms."""
        shapes: dict[str, Shape] = {}
        for linear in self.linears:
            shapes[linear.tensor] = linear.shape
            if linear.bias is not None:
                shapes[linear.bias] = linear.shape[:1]
        return shapes | {norm.tensor: (norm.width,) for norm in self.norms}


@dataclass(frozen=True, slots=True)
class GgufNames:
    """The name of a family in llama.cpp, and how that computes it.

    adjacent_rotary: it rotates neighbouring rows of queries and keys, so that a file has these rows
    in another order than the checkpoint. rope_kinds are the kinds of rotary embedding it knows,
    biased the layers whose bias it has a place for. plain_heads: it knows no head size but hidden
    size / heads.
    """

    architecture: str
    biased: tuple[str, ...] = ()
    plain_heads: bool = False
    adjacent_rotary: bool = False
    rope_kinds: tuple[str, ...] = ("default", "linear")


@dataclass(frozen=True, slots=True)
class MlxNames:
    """The name of a family in mlx-lm, and where that computes something else than transformers.

    module is the one of mlx_lm.models; foreign_keys are config keys that it obeys and transformers
    does not; biased and plain_heads are as in `GgufNames`. All its layers attend to everything.
    """

    module: str
    biased: tuple[str, ...] = ()
    foreign_keys: tuple[str, ...] = ()
    plain_heads: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeNames:
    """The names of a family in each runtime; None for those that do not know it."""

    transformers: str
    gguf: GgufNames | None = None
    mlx: MlxNames | None = None
    genai: str | None = None


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder-only language model: sizes, blocks and the tensors outside of them.

    context is the longest text it was made for, epsilon that of its norms; None where the config is
    silent. bias_keys are the config keys that give linear layers a bias, for error messages.
    """

    model_type: str
    hidden: int
    vocabulary: int
    layers: tuple[Layer, ...]
    tied_head: bool
    names: RuntimeNames
    context: int | None = None
    epsilon: float | None = None
    bias_keys: tuple[str, ...] = ()
    embedding: str = "model.embed_tokens.weight"
    blocks: str = "model.layers"
    final_norm: str = "model.norm.weight"
    head: str = "lm_head.weight"

    @property
    def whole_context(self) -> int | None:
        """Count the tokens within which every token attends to all before it; None if unknown."""
        return self.context if self.window is None else self.window

    @property
    def window(self) -> int | None:
        """Give the shortest window of all blocks that is shorter than the context, or None."""
        windows = [layer.attention.window for layer in self.layers]
        shortest = min((window for window in windows if window is not None), default=None)
        if shortest is None or (self.context is not None and shortest >= self.context):
            return None
        return shortest

    def block_name(self, index: int) -> str:
        """Name the module of a block: "model.layers.3"."""
        return f"{self.blocks}.{index}"

    def linears(self) -> Iterator[LinearSpec]:
        """Yield all linear layers of all blocks in execution order, by their complete names."""
        for index, layer in enumerate(self.layers):
            for linear in layer.linears:
                yield linear.inside(self.block_name(index))

    def outer_shapes(self) -> dict[str, Shape]:
        """Give the shapes of the tensors outside of the blocks; a tied head has none."""
        table: Shape = (self.vocabulary, self.hidden)
        shapes: dict[str, Shape] = {self.embedding: table, self.final_norm: (self.hidden,)}
        return shapes if self.tied_head else shapes | {self.head: table}

    def tensor_shapes(self) -> dict[str, Shape]:
        """Give the shape of every tensor of the model, in the order of execution."""
        outer = self.outer_shapes()
        shapes = {self.embedding: outer.pop(self.embedding)}
        for index, layer in enumerate(self.layers):
            block = self.block_name(index)
            shapes |= {f"{block}.{name}": shape for name, shape in layer.tensor_shapes().items()}
        return shapes | outer

    def is_redundant(self, tensor: str) -> bool:
        """Say whether runtimes compute a stored tensor anew: a tied head's copy, rotary tables."""
        copied = self.tied_head and tensor == self.head
        return copied or tensor.endswith(".rotary_emb.inv_freq")


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Ids of special tokens: none, one or several; end has all that a text or a turn ends with."""

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    pad: tuple[int, ...] = ()
    unknown: tuple[int, ...] = ()


OF_ONE_MACHINE = (
    "attn_implementation",
    "_attn_implementation",
    "cache_implementation",
    "compile_config",
)
"""Keys of a config that choose code or memory, and nothing of what a model computes."""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The facts of a model once it is open, which never change again.

    dtype is the number type that it is computed in. template is its chat template, in Jinja,
    files the ones beside the weights, tokenizer.json with all tokens that others of them add. notes
    say which contradictions in its files were settled, and how. stated is the config as the user
    gave it, settled the keys of it that were decided anew; only `edgeq.architectures` reads them,
    nothing writes into them, and others get copies by `config` and `settled_config`.
    """

    name: str
    decoder: Decoder
    tokens: TokenIds
    dtype: str
    stated: Mapping[str, Any] = field(repr=False)
    settled: Mapping[str, Any] = field(default_factory=dict, repr=False)
    template: str | None = field(default=None, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def vocabulary(self) -> int:
        """Give the rows of the embedding."""
        return self.decoder.vocabulary

    @property
    def context(self) -> int | None:
        """Count the tokens that the model was made for; None where its config is silent."""
        return self.decoder.context

    def config(self) -> dict[str, Any]:
        """Give a copy of config.json that its receiver may change: libraries write into theirs."""
        return deepcopy(dict(self.stated))

    def settled_config(self) -> dict[str, Any]:
        """Give a copy of the config in which nothing contradicts the weights or another file.

        Keys of how one machine runs a model are left out: another one may lack what they name.
        """
        settled = deepcopy({**self.stated, **self.settled})
        return {key: value for key, value in settled.items() if key not in OF_ONE_MACHINE}

"""Say what a model is, as plain data: the description that everything reads instead of a config.

`edgeq.architectures` makes it from a config, once, when a model is opened. Nothing here computes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeq.errors import UnsupportedModel
from edgeq.runtime_names import RuntimeNames
from edgeq.types import LinearSpec
from edgeq.words import edgeq_command

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: its kind ("default", "linear", "llama3" ...), base, and what scales it.

    part is the share of a head's columns that is rotated. adjacent: neighbouring columns turn
    together, not those half a head apart.
    """

    kind: str
    theta: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    part: float = 1.0
    adjacent: bool = False


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention of one block: heads, rotary embedding, window.

    window: how many tokens, itself included, a token attends to; None for all. head_norms: queries
    and keys pass a norm of their own, head by head, before they are rotated; whole_norms: all heads
    together. rope is None where nothing is rotated. scale multiplies scores (None: head size **
    -1/2), which soft_cap then bends: cap * tanh(scores / cap). sinks: a learned score per head that
    takes weight from all tokens.
    """

    heads: int
    key_heads: int
    head_size: int
    rope: Rope | None
    window: int | None = None
    head_norms: bool = False
    whole_norms: bool = False
    scale: float | None = None
    soft_cap: float | None = None
    sinks: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: how many there are, how many a token reaches, and their inner width.

    shared_inner is the width of what every token passes besides, 0 for none. router turns scores
    into weights: "softmax" or "sigmoid"; normed: the weights of the chosen ones sum to one; scale
    multiplies them.
    """

    count: int
    per_token: int
    inner: int
    shared_inner: int = 0
    router: Literal["softmax", "sigmoid"] = "softmax"
    normed: bool = True
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Mlp:
    """Feed-forward part of one block: down(activation(gate(x)) * up(x)).

    Without a gate it is down(activation(up(x))). experts: several such parts of which a token
    passes some.
    """

    inner: int
    activation: str
    gated: bool = True
    experts: Experts | None = None


NormPlace = Literal[
    "before attention", "after attention", "before mlp", "after mlp", "queries", "keys", "elsewhere"
]


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm: the name of its weight in the block, its width, where it sits, its bias if any."""

    tensor: str
    width: int
    place: NormPlace = "elsewhere"
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder block; names are those inside of the block.

    sites are the linear layers in execution order, those that read one input together. attention
    is None in a block that mixes tokens in another way, mlp where there is none, and both where
    nothing but shapes is known of a family. others are the tensors that are neither a linear layer
    nor a norm, by name: routers, convolutions, tables.
    """

    attention: Attention | None
    mlp: Mlp | None
    sites: tuple[tuple[LinearSpec, ...], ...]
    norms: tuple[Norm, ...]
    others: Mapping[str, Shape] = field(default_factory=dict)

    @property
    def linears(self) -> tuple[LinearSpec, ...]:
        """List all linear layers in execution order."""
        return tuple(linear for site in self.sites for linear in site)

    def tensor_shapes(self) -> dict[str, Shape]:
        """Give the shape of every tensor of the block: each weight with its bias, then norms."""
        shapes: dict[str, Shape] = {}
        for linear in self.linears:
            shapes[linear.tensor] = linear.stored_shape
            if linear.bias is not None:
                shapes[linear.bias] = linear.stored_bias
        for norm in self.norms:
            shapes[norm.tensor] = (norm.width,)
            if norm.bias is not None:
                shapes[norm.bias] = (norm.width,)
        return shapes | dict(self.others)

    def norm_at(self, place: NormPlace) -> Norm | None:
        """Find the norm that sits at a place, or None."""
        return next((norm for norm in self.norms if norm.place == place), None)


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder-only language model: sizes, blocks and the tensors outside of them.

    context is the longest text it was made for, epsilon that of its norms; None where the config is
    silent. bias_keys are the config keys that give linear layers a bias, for error messages.

    norm is the kind of all norms; norm_offset is added to their weights, as Gemma's 1 is. parallel:
    attention and feed-forward read one input, and both are added to it. embedding_scale multiplies
    what the embedding gives, residual_scale what is added to the hidden states, logit_scale the
    logits, which logit_cap then bends. traits name what else sets the model apart from a Llama, for
    runtimes to know or to refuse. others are tensors outside of the blocks beside embedding, final
    norm and head, and these where they have another shape. final_norm is empty where there is none.
    passed_over are patterns of tensors that files may hold beside those of the model.
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
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    parallel: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None
    traits: tuple[str, ...] = ()
    others: Mapping[str, Shape] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()

    @property
    def attention(self) -> Attention:
        """Give the attention of the first block that has one.

        Raises: UnsupportedModel where none is described.
        """
        found = next((layer.attention for layer in self.layers if layer.attention), None)
        if found is None:
            raise UnsupportedModel(
                f"the attention of model_type '{self.model_type}' is not described; "
                f"see {edgeq_command('export', '--list')} for formats that hold it"
            )
        return found

    @property
    def rope(self) -> Rope:
        """Give the rotary embedding of the first block that has one, else one that turns nothing.

        Models that rotate by other means are told apart by their traits.
        """
        found = (layer.attention.rope for layer in self.layers if layer.attention)
        return next((rope for rope in found if rope is not None), Rope("default", 1.0, part=0.0))

    @property
    def inner(self) -> int:
        """Give the inner width of the first feed-forward part, 0 where none is described."""
        return next((layer.mlp.inner for layer in self.layers if layer.mlp), 0)

    @property
    def whole_context(self) -> int | None:
        """Count the tokens within which every token attends to all before it; None if unknown."""
        return self.context if self.window is None else self.window

    @property
    def window(self) -> int | None:
        """Give the shortest window of all blocks that is shorter than the context, or None."""
        windows = [layer.attention.window for layer in self.layers if layer.attention]
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

    def linear_of(self, tensor: str) -> LinearSpec | None:
        """Find a linear layer whose weight lies in a tensor, both by complete names.

        None for tensors of another kind.
        """
        index, _, inner = tensor.removeprefix(f"{self.blocks}.").partition(".")
        if tensor != f"{self.blocks}.{index}.{inner}" or not index.isdecimal():
            return None
        if int(index) >= len(self.layers):
            return None
        linears = self.layers[int(index)].linears
        found = next((linear for linear in linears if linear.tensor == inner), None)
        return None if found is None else found.inside(self.block_name(int(index)))

    def matrix_shapes(self) -> dict[str, Shape]:
        """Give the shapes of all tensors, those with linear layers as the matrix to be solved."""
        solved = {linear.tensor: linear.matrix_shape for linear in self.linears()}
        return {name: solved.get(name, shape) for name, shape in self.tensor_shapes().items()}

    def outer_shapes(self) -> dict[str, Shape]:
        """Give the shapes of the tensors outside of the blocks; a tied head has none."""
        table: Shape = (self.vocabulary, self.hidden)
        tied = self.head if self.tied_head else None
        shapes: dict[str, Shape] = {self.embedding: table}
        if self.final_norm:
            shapes[self.final_norm] = (self.hidden,)
        if not self.tied_head:
            shapes[self.head] = table
        return shapes | {name: shape for name, shape in self.others.items() if name != tied}

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


def passed_over(decoder: Decoder, tensors: Iterable[str]) -> list[str]:
    """List the stored tensors that no runtime reads: masks of old checkpoints, layers of drafts."""
    expected = decoder.tensor_shapes()
    patterns = [re.compile(pattern) for pattern in decoder.passed_over]
    others = (name for name in tensors if name not in expected)
    return [name for name in others if any(pattern.search(name) for pattern in patterns)]


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Ids of special tokens: none, one or several; end has all that a text or a turn ends with."""

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    pad: tuple[int, ...] = ()
    unknown: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from and what its licence is, as far as its own files say.

    repository is its "owner/name" on the hub. license is the word that cards have for it, such as
    "apache-2.0", or "other", which license_name and license_link then explain. base_models are the
    models on the hub that it was made from.
    """

    repository: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_models: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Give what is known, as JSON holds it."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value
        }


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
    files the ones beside the weights, tokenizer.json with all tokens that others of them add.
    origin says where it comes from. notes say which contradictions in its files were settled, and
    how. stated is the config as the user
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
    origin: Origin = Origin()

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

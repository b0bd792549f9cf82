"""Name a family of models in each runtime, and say what that computes of it, as plain data.

The families in `edgeq.architectures.families` state them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class GgufNames:
    """The name of a family in llama.cpp, and how that computes it.

    adjacent_rotary: it rotates neighbouring rows of queries and keys, so that a file has these rows
    in another order than the checkpoint. rope_kinds are the kinds of rotary embedding it knows,
    biased the layers whose bias it has a place for. plain_heads: it knows no head size but hidden
    size / heads. computes has the features beyond a Llama's that it computes, in the words of
    `edgeq.architectures.features`, activations those of the feed-forward part.
    """

    architecture: str
    biased: tuple[str, ...] = ()
    computes: frozenset[str] = frozenset()
    activations: tuple[str, ...] = ("silu",)
    plain_heads: bool = False
    adjacent_rotary: bool = False
    rope_kinds: tuple[str, ...] = ("default", "linear", "yarn")


@dataclass(frozen=True, slots=True)
class MlxNames:
    """The name of a family in mlx-lm, and where that computes something else than transformers.

    module is the one of mlx_lm.models, model_type what config.json must say for it, where that is
    another word. foreign_keys are config keys that it obeys and transformers does not; biased,
    computes, activations, rope_kinds and plain_heads are as in `GgufNames`. always_biased: no layer
    of these can be without. head: whether it can tie the head, must, or cannot.

    sliding is how it is told which blocks slide: "types" by layer_types, of which some must be
    full; "both types" by these, but not without any; "period" by the place of full ones; "letters"
    as "LLG". Where it is empty, and where a model has what cannot be told so, all blocks attend to
    everything. local_base is the key for the rotary base of blocks that slide; nested_rope: it is
    in rope_parameters. experts are the paths in a block of stacks of experts, by the last part of
    an expert's layers. always are the features without which it does not compute.
    """

    module: str
    biased: tuple[str, ...] = ()
    computes: frozenset[str] = frozenset()
    activations: tuple[str, ...] = ("silu",)
    foreign_keys: tuple[str, ...] = ()
    plain_heads: bool = False
    always_biased: bool = False
    rope_kinds: tuple[str, ...] = ("default", "linear", "llama3", "dynamic", "yarn")
    sliding: Literal["", "types", "both types", "period", "letters"] = ""
    local_base: str = ""
    nested_rope: bool = False
    head: Literal["either", "tied", "own"] = "either"
    model_type: str = ""
    experts: Mapping[str, str] = field(default_factory=dict)
    always: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RuntimeNames:
    """The names of a family in each runtime; None for those that do not know it.

    genai is the type in genai_config.json: "decoder" where onnxruntime-genai has no name for it but
    runs its graph, None where it does not. ONNX Runtime itself runs graphs of any family.
    """

    transformers: str
    gguf: GgufNames | None = None
    mlx: MlxNames | None = None
    genai: str | None = None

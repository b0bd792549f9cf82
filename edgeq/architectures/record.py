"""Read a model's config once, with what its files show: checks, then the record that all use.

Forward passes, plans and exporters go by the record: none looks into a source's config. Where
config and files contradict each other, transformers' rule decides, and the record's notes say so.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from edgeq.architectures.chat_template import read_template
from edgeq.architectures.config_checks import check_attention, check_nesting, check_values
from edgeq.architectures.families import families, with_common_keys
from edgeq.architectures.loader_keys import check_loader_keys
from edgeq.architectures.rope import contradicting_rope, rope_keys, rope_of
from edgeq.architectures.special_tokens import (
    contradictions,
    read_tokens,
    unheard_settings,
)
from edgeq.architectures.tokenizer_file import added_around, unite
from edgeq.decoder import Decoder, ModelRecord, TokenIds
from edgeq.dtypes import CODE_NAMES
from edgeq.errors import BadInput, UnsupportedModel, reason_of
from edgeq.registry import describe_model
from edgeq.words import as_text

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the files of a model show, beside its config.

    files are those beside the weights, by name. own_head says whether the weights hold a head that
    is no copy of the embedding; it is asked where a config ties the two. dtype is the number type
    of most weights; None where there are none.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    own_head: Callable[[Decoder], bool] = lambda decoder: False
    dtype: str | None = None


def read_record(name: str, config: Config, evidence: Evidence = Evidence()) -> ModelRecord:
    """Read what a model is from its config, once, when its source is opened.

    Raises: UnsupportedModel for other architectures and models that are quantized already; BadInput
    for values of a wrong type or range, and for damaged files.
    """
    check_nesting(config)
    stated = deepcopy(dict(config))
    if stated.get("quantization_config"):
        raise UnsupportedModel(
            "the model is quantized already; start from the full-precision checkpoint"
        )
    check_values(with_common_keys(stated))
    check_loader_keys(stated, alike=str(stated.get("model_type")) in families())
    decoder = describe_decoder(stated)
    notes = []
    if decoder.tied_head and evidence.own_head(decoder):
        decoder = replace(decoder, tied_head=False)
        notes.append(
            "config.json ties the head to the embedding, but the weights hold another head; "
            "it is kept, as in transformers"
        )
    notes += contradicting_rope(stated)
    dtype = read_dtype(stated, evidence.dtype)
    files, tokenizer, left_out = unite(evidence.files, decoder.vocabulary)
    id_of = (lambda token: None) if tokenizer is None else tokenizer.token_to_id
    tokens = read_tokens(stated, files, id_of)
    notes += [*left_out, *contradictions(stated, files, id_of)]
    if tokenizer is not None:
        notes += unheard_settings(files, tokens, added_around(tokenizer))
    return ModelRecord(
        as_text(name),
        decoder,
        tokens,
        dtype,
        stated,
        settled=settled_keys(stated, decoder, tokens),
        template=read_template(files),
        files=files,
        notes=tuple(notes),
    )


def describe_decoder(config: Config) -> Decoder:
    """Describe a model by the file of its family, else from the model itself.

    The file may leave some configs of its family to the model.

    Raises: UnsupportedModel, BadInput, or NotInstalled where there is no file and no library.
    """
    describe = families().get(str(config.get("model_type")))
    if describe is None:
        return describe_model(deepcopy(config))
    common = with_common_keys(config)
    check_attention(common)
    try:
        described = describe(deepcopy(common))
    # of values that no rule names and that no model has
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise BadInput(
            f"config of model_type {config.get('model_type')!r}: a value is none that such a model "
            f"has ({type(error).__name__}: {reason_of(error)}); "
            "use the config.json that belongs to these weights"
        ) from error
    return described or describe_model(deepcopy(config))


def read_dtype(config: Config, stored: str | None) -> str:
    """Read the number type of a model: what its config states, else that of most weights.

    "dtype" wins over the older "torch_dtype", and "auto" states nothing, as in transformers.

    Raises: BadInput for a type that weights are not computed in.
    """
    key = "dtype" if config.get("dtype") is not None else "torch_dtype"
    stated = config.get(key)
    if stated is None or stated == "auto":
        return stored or "float32"
    known = stated.removeprefix("torch.") if isinstance(stated, str) else ""
    if known == "float64":  # which is read as float32
        return "float32"
    if known not in CODE_NAMES:
        raise BadInput(
            f"config: {key} is {stated!r:.60}; it must be one of {', '.join(CODE_NAMES)}, auto"
        )
    return known


def settled_keys(config: Config, decoder: Decoder, tokens: TokenIds) -> dict[str, Any]:
    """Write what was decided in the keys of a config: head, rotary embedding, all ends of text."""
    settled: dict[str, Any] = {"tie_word_embeddings": decoder.tied_head}
    if any(contradicting_rope(config)):
        settled |= rope_keys(rope_of(config))
    if tokens.end:
        settled["eos_token_id"] = tokens.end[0] if len(tokens.end) == 1 else list(tokens.end)
    return settled

"""Check the keys of a config that transformers' own loader goes by, beside those of the model.

Exports keep a model's config, and references are computed from its own directory: what the loader
refuses or follows to another file must be known before the work. Keys of how one machine runs a
model are no matter of it: `edgeq.decoder.ModelRecord` leaves them out of exports.
"""

from collections.abc import Mapping
from typing import Any

from edgeq.architectures.config_checks import FLAG, Rule
from edgeq.errors import BadInput

PARTS = (
    "convert_rope_params_to_dict default_config_fields dict_dtype_to_str from_dict from_json_file "
    "from_pretrained get_config_dict get_mtp_config get_text_config is_custom_code "
    "is_heterogeneous is_remote_code nested_rope_parameter_keys per_layer_attributes push_to_hub "
    "register_for_auto_class save_pretrained standardize_rope_params sub_configs to_dict "
    "to_diff_dict to_json_file to_json_string update update_from_string use_return_dict validate "
    "validate_architecture validate_layer_type validate_output_attentions validate_rope "
    "validate_token_ids"
).split()
"""What transformers' class of configs has of its own, and no config can set."""
PER_LAYER = "per_layer_config"
ATTENTION_CODE = (None, "eager", "sdpa", "flex_attention")
EXPERTS = (None, "eager", "batched_mm", "grouped_mm")

Config = Mapping[str, Any]


def check_loader_keys(config: Config, *, alike: bool) -> None:
    """Refuse keys that transformers' loader stumbles over, or that lead it to other weights.

    alike: all blocks are described alike, so that nothing may set one apart.

    Raises: BadInput naming the key.
    """
    for key in config:
        if key in PARTS or key.startswith("__"):
            raise BadInput(
                f"config: {key:.60} is the name of a part of transformers' own config class; "
                "leave the key out"
            )
    for key, (rule, holds) in LOADED.items():
        if key == PER_LAYER and not alike:
            continue
        if key in config and not holds(config[key]):
            raise BadInput(f"config: {key} is {config[key]!r:.60}; it must be {rule}")


def _is_absent(value: Any) -> bool:
    return value is None


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_object_or_null(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def _is_number_or_null(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or number


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _has_numbered_labels(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, Mapping) and all(str(key).strip("-").isdecimal() for key in value)


PLAN: Rule = ("an object, or left out", _is_object_or_null)
EXPERT_CODE: Rule = ("left out, the model has no experts", lambda value: value in EXPERTS)
# what null is for each of these keys is up to its rule
LOADED: Mapping[str, Rule] = {
    "transformers_weights": ("left out, it names other weights than are read here", _is_absent),
    "quantization_config": ("left out where weights are not quantized", _is_absent),
    PER_LAYER: (
        "left out, all blocks are computed alike",
        lambda value: value is None or value == {},
    ),
    "attribute_map": ("left out, keys keep their names", lambda value: value == {}),
    "tie_word_embeddings": FLAG,
    "use_cache": FLAG,
    "return_dict": ("true, or left out", lambda value: value is True),
    "output_hidden_states": ("true or false", lambda value: value is None or FLAG[1](value)),
    "attention_dropout": ("a number", _is_number_or_null),
    "experts_implementation": EXPERT_CODE,
    "_experts_implementation": EXPERT_CODE,
    "_attn_implementation": (
        "left out, which code runs a model is no matter of its files",
        lambda value: value in ATTENTION_CODE,
    ),
    "auto_map": ("an object, or left out", _is_object),
    "base_model_tp_plan": PLAN,
    "base_model_pp_plan": PLAN,
    "num_labels": ("a whole number", _is_whole),
    "id2label": ("an object from numbers to labels, or left out", _has_numbered_labels),
    "ignore_keys_at_rope_validation": ("left out, no key is passed over", _is_absent),
}

"""Make the transformers model of a config without its weights.

Which parameters it has is known then; none of them takes memory.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import version
from inspect import signature
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as library

from edgeq.errors import BadInput, UnsupportedModel, reason_of

KEPT_KEYS = {
    "model_type",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "rope_scaling",
    "per_layer_config",
}
FORM_KEYS = {
    "gradient_checkpointing",
    "attention_dropout",
    "use_cache",
    "cache_implementation",
    "compile_config",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "dtype",
    "torch_dtype",
    "auto_map",
    "quantization_config",
    "watermarking_config",
    "assistant_ensemble_weight",
    "max_new_tokens",
    "mtp_layer_types",
}
"""Keys that say nothing of what a model computes, beside those of the library's own class."""
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
)
FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def empty_model(config: Mapping[str, Any], name: str = "", *, tables: bool = True) -> Any:
    """Make the transformers model of a config, without parameters.

    It has its rotary tables unless tables is False: then nothing of it is more than a shape.

    Raises: BadInput for a config that transformers refuses, UnsupportedModel for a kind of model
    that it does not know, or that is no decoder.
    """
    check_kind(config)
    with quiet_library(), no_random_numbers():
        try:
            made = AutoConfig.for_model(**computed_keys(config))
            with init_empty_weights(include_buffers=False) if tables else torch.device("meta"):
                model: Any = AutoModelForCausalLM.from_config(made, dtype=torch.float32)
            model.tie_weights()
        # the library checks configs in many places, each with an exception of its own
        except Exception as error:
            whose = f" of model {name!r}" if name else ""
            raise BadInput(
                f"config.json{whose}: "
                f"transformers refuses it ({type(error).__name__}: {reason_of(error)}); "
                "use the config.json that belongs to these weights"
            ) from error
    return model.eval()


def with_silent_sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete a config by the sizes that transformers takes for its type where it is silent.

    A config that the library refuses is left as it is: it is named where the model is made.
    """
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING or all(config.get(key) is not None for key in SIZES):
        return dict(config)
    try:
        with quiet_library():
            made = CONFIG_MAPPING[kind](**computed_keys(config)).to_dict()
    except Exception:  # the library's own, of whatever it checks
        return dict(config)
    # null stays where a config states it of other keys: a window of null is no window
    missing = [key for key in SIZES if config.get(key) is None and made.get(key) is not None]
    return {**config, **{key: made[key] for key in missing}}


def check_kind(config: Mapping[str, Any]) -> None:
    """Refuse a kind of model that transformers does not know, or that predicts no next token.

    Raises: UnsupportedModel saying which.
    """
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        near = get_close_matches(kind, list(CONFIG_MAPPING), n=3)
        mend = f"did you mean {' or '.join(near)}?" if near else "update transformers"
        if config.get("auto_map"):
            mend = "the code that comes with a model is never run"
        raise UnsupportedModel(
            f"model_type {config.get('model_type')!r:.60} is not known to "
            f"transformers {version('transformers')}; {mend}"
        )
    made = CONFIG_MAPPING[kind]
    no_decoder = (
        made not in MODEL_FOR_CAUSAL_LM_MAPPING or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    if no_decoder or made.is_encoder_decoder:
        raise UnsupportedModel(
            f"model_type {kind!r} is no decoder that predicts one token after the other; "
            "give a causal language model"
        )
    if "text_config" in made.sub_configs:
        raise UnsupportedModel(
            f"model_type {kind!r} holds a language model beside other parts (text_config); "
            "give a checkpoint of the language model alone"
        )


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep the library from writing logs: what is wrong becomes an error."""
    verbosity = library.get_verbosity()
    library.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        library.set_verbosity(verbosity)


@contextmanager
def no_random_numbers() -> Iterator[None]:
    """Leave the state of torch's random numbers alone, whatever a model draws when it is made."""
    with torch.random.fork_rng(devices=[]):
        yield


def computed_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a config what concerns training, saving and the form of outputs.

    A model computes the same without these keys, and forward passes know one form of outputs. A key
    that has the name of something of the library's own class would take its place.
    """
    kind = CONFIG_MAPPING[config["model_type"]]
    own = {*signature(kind).parameters} - {*signature(PreTrainedConfig).parameters}
    kept = own.difference(FORM_KEYS) | KEPT_KEYS
    return {
        key: with_floats(value)
        for key, value in config.items()
        if key in kept or not (key in FORM_KEYS or hasattr(PreTrainedConfig, key))
    }


def with_floats(value: Any) -> Any:
    """Read the floats that JSON has no number for: {"__float__": "Infinity"}, as transformers."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in FLOATS:
            return FLOATS[value["__float__"]]
        return {key: with_floats(each) for key, each in value.items()}
    return [with_floats(each) for each in value] if isinstance(value, list) else value

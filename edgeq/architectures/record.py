"""Read a model's config once: checks, then the record that everything else uses.

Forward passes, plans and exporters go by the record: none looks into a source's config.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from edgeq.architectures.config_checks import check_values
from edgeq.architectures.families import families
from edgeq.decoder import ModelRecord, TokenIds
from edgeq.errors import UnsupportedModel

Config = Mapping[str, Any]


def read_record(name: str, config: Config) -> ModelRecord:
    """Read what a model is from its config, once, when its source is opened.

    Raises: UnsupportedModel for other architectures and models that are quantized already; BadInput
    for values of a wrong type or range.
    """
    stated = deepcopy(dict(config))
    describe = families().get(str(stated.get("model_type")))
    if describe is None:
        supported = ", ".join(families())
        raise UnsupportedModel(
            f"model_type {stated.get('model_type')!r} is not supported; "
            f"give a model of type {supported}"
        )
    if stated.get("quantization_config"):
        raise UnsupportedModel(
            "the model is quantized already; start from the full-precision checkpoint"
        )
    check_values(stated)
    dtype = str(stated.get("dtype") or stated.get("torch_dtype") or "float32")
    return ModelRecord(name, describe(deepcopy(stated)), token_ids(stated), dtype, stated)


def token_ids(config: Config) -> TokenIds:
    """Read the ids of special tokens that a config states."""

    def ids(key: str) -> tuple[int, ...]:
        stated = config.get(f"{key}_token_id")
        listed = stated if isinstance(stated, list) else [stated]
        return tuple(token for token in listed if isinstance(token, int))

    return TokenIds(ids("bos"), ids("eos"), ids("pad"), ids("unk"))

"""A model of which only config.json and perhaps the shard index are there: enough to plan a run,
not to make one.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeq.architectures.layout import (
    expected_block_shapes,
    expected_outer_shapes,
    find_blocks,
    is_redundant,
)
from edgeq.architectures.model_config import check_config, positive_integer
from edgeq.dtypes import CODE_NAMES, ITEM_BYTES
from edgeq.errors import BadInput
from edgeq.sources.fingerprint import hash_model
from edgeq.sources.safetensors_directory import (
    SHARD_INDEX,
    read_companions,
    read_model_json,
    read_weight_map,
)
from edgeq.types import BlockSpec, NumpyArray

MOST_BLOCKS = 10_000


def block_count(config: Mapping[str, Any]) -> int:
    """Raises: BadInput for more than any model has: nothing but the config limits the number
    here.
    """
    count = positive_integer(config, "num_hidden_layers")
    if count > MOST_BLOCKS:
        raise BadInput(f"config: num_hidden_layers is {count}; it must be {MOST_BLOCKS} or less")
    return count


class ModelOutline:
    """Names and shapes of all tensors as the config implies them, checked against the index where
    there is one.

    Raises: BadInput or UnsupportedModel, each with one line.
    """

    def __init__(self, path: Path) -> None:
        self.directory, self.name = path, path.resolve().name
        self.config: Mapping[str, Any] = read_model_json(path / "config.json")
        check_config(self.config)
        self._shapes = dict(expected_outer_shapes(self.config))
        of_block = expected_block_shapes(self.config)
        for block in range(block_count(self.config)):
            self._shapes |= {
                f"model.layers.{block}.{name}": shape for name, shape in of_block.items()
            }
        if (path / SHARD_INDEX).is_file():
            self._check_names(read_weight_map(path))
        self.decoder_blocks = find_blocks(self.config, self._shapes)

    def _check_names(self, listed: Mapping[str, str]) -> None:
        for name in listed:
            if name not in self._shapes and not is_redundant(name, self.config):
                raise BadInput(
                    f"{self.directory / SHARD_INDEX} lists "
                    f"{name!r}, which the config has no place for"
                )
        for name in self._shapes:
            if name not in listed:
                raise BadInput(
                    f"{self.directory / SHARD_INDEX} lacks {name!r}, which the config asks for"
                )

    def tensor_names(self) -> Sequence[str]:
        return tuple(self._shapes)

    def shape(self, tensor_name: str) -> tuple[int, ...]:
        return self._shapes[tensor_name]

    def read(self, tensor_name: str) -> NumpyArray:
        raise BadInput(
            f"{self.directory} holds no weights ({tensor_name!r} was asked for); fetch them first"
        )

    def stored_as(self, tensor_name: str) -> str:
        stated = str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")
        return CODE_NAMES.get(stated, "F32")

    def tensor_bytes(self, tensor_name: str) -> int:
        return math.prod(self.shape(tensor_name)) * ITEM_BYTES[self.stored_as(tensor_name)]

    def stored_bytes(self) -> int:
        return sum(self.tensor_bytes(name) for name in self._shapes)

    def blocks(self) -> Sequence[BlockSpec]:
        return self.decoder_blocks

    def companions(self) -> Mapping[str, bytes]:
        return read_companions(self.directory)

    def fingerprint(self) -> str:
        return hash_model(self.config, self._shapes, [])

"""Describe a model of which only config.json and perhaps the shard index are there.

That is enough to plan a run, and not to make one.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeq.architectures.blocks import find_blocks
from edgeq.architectures.record import Evidence, read_record
from edgeq.architectures.text_part import text_config, text_names
from edgeq.decoder import passed_over
from edgeq.dtypes import CODE_NAMES, ITEM_BYTES
from edgeq.errors import BadInput
from edgeq.sources.fingerprint import hash_model
from edgeq.sources.refusals import SHARD_INDEX
from edgeq.sources.safetensors_directory import (
    model_name,
    read_companions,
    read_model_json,
    read_weight_map,
)
from edgeq.types import BlockSpec, NumpyArray


class ModelOutline:
    """Names and shapes of all tensors as the config implies them.

    They are compared with the shard index where there is one.

    Raises: BadInput or UnsupportedModel, each with one line.
    """

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        self.directory = path
        companions = read_companions(path)
        config = read_model_json(path / "config.json")
        inner = text_config(config)
        config = config if inner is None else inner
        self.record = read_record(name or model_name(path), config, Evidence(companions))
        self._shapes = self.record.decoder.tensor_shapes()
        if (path / SHARD_INDEX).is_file():
            listed = read_weight_map(path)
            names = {name: name for name in listed} if inner is None else text_names(listed)
            self._check_names({names[name]: listed[name] for name in names})
        self.decoder_blocks = find_blocks(self.record.decoder, self._shapes)

    def _check_names(self, listed: Mapping[str, str]) -> None:
        for name in listed:
            known = name in self._shapes or self.record.decoder.is_redundant(name)
            if not known and not passed_over(self.record.decoder, [name]):
                raise BadInput(
                    f"{self.directory / SHARD_INDEX} lists {name!r}, "
                    "which the config has no place for"
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
        return CODE_NAMES.get(self.record.dtype, "F32")

    def tensor_bytes(self, tensor_name: str) -> int:
        return math.prod(self.shape(tensor_name)) * ITEM_BYTES[self.stored_as(tensor_name)]

    def stored_bytes(self) -> int:
        return sum(self.tensor_bytes(name) for name in self._shapes)

    def location(self) -> Path:
        return self.directory

    def blocks(self) -> Sequence[BlockSpec]:
        return self.decoder_blocks

    def companions(self) -> Mapping[str, bytes]:
        return self.record.files

    def fingerprint(self) -> str:
        return hash_model(self.record.config(), self._shapes, [])

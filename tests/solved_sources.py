"""A live model whose linear layers have random codes on a grid, as tuning reads a checkpoint."""

import models
import numpy as np
from tiny_models import random_layer

from edgeq.types import LinearSpec


class SolvedSource(models.MemorySource):
    """A MemorySource, or another one, some of whose linear layers are quantized."""

    def __init__(self, source, grid, seed=0):
        self._source, self.record = source, source.record
        rng = np.random.default_rng(seed)
        self.layers = {}
        for linear in self.record.decoder.linears():
            # a shared tensor is solved as one matrix
            if linear.tensor not in self.layers:
                layer = random_layer(rng, linear.matrix_shape, grid, size=0.3)
                self.layers[linear.tensor] = layer
        self._changed = {}

    def with_values(self, values):
        """Replace dense tensors, to see what they do."""
        self._changed = values
        return self

    def tensor_names(self):
        return self._source.tensor_names()

    def shape(self, tensor_name):
        return self._source.shape(tensor_name)

    def grid(self, tensor_name):
        return self.layers[tensor_name].grid if tensor_name in self.layers else None

    def quantized(self, tensor_name):
        return self.layers[tensor_name]

    def dense(self, tensor_name):
        return self._changed.get(tensor_name, self._source.read(tensor_name))

    def stored_as(self, tensor_name):
        return "F32"

    def linear(self, tensor_name) -> LinearSpec:
        found = self.record.decoder.linear_of(tensor_name)
        assert found is not None
        return found

    def read(self, tensor_name):
        if tensor_name not in self.layers:
            return self.dense(tensor_name)
        matrix = self.layers[tensor_name].dequantized()
        return self.linear(tensor_name).tensor_of(matrix)

    def blocks(self):
        return self._source.blocks()

    def companions(self):
        return self._source.companions()

    def fingerprint(self):
        return "solved"

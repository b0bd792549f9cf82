"""Compute logits of an exported ONNX graph in ONNX Runtime, to check exports as users run them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from edgeq.errors import BadInput
from edgeq.types import NumpyArray

PROVIDER = "CPUExecutionProvider"
FILE_NAME = "model.onnx"
EXACT = 0  # the accuracy level at which ONNX Runtime computes in float32


class OnnxRuntimeLogits:
    """A LogitSource over an exported directory or its model.onnx, on the CPU.

    Every window starts with an empty cache. The graph runs at accuracy level 0, whatever level it
    was exported with: activations stay in float32, so that the logits are those of the weights in
    the file. At level 4, which exports ship with, ONNX Runtime rounds activations to 8 bits. The
    file is not changed.

    Raises: BadInput for a file that ONNX Runtime cannot load.
    """

    def __init__(self, path: Path | str, *, threads: int = 0) -> None:
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        try:
            self._session = open_session(file, threads=threads)
        # protobuf and ONNX Runtime raise a type of their own for each way to be wrong
        except Exception as failure:
            reason = " ".join(str(failure).split())
            raise BadInput(
                f"ONNX Runtime cannot load '{file}': {reason}; export it again or check the path"
            ) from failure
        assert self._session.get_providers()[0] == PROVIDER
        self._inputs = {value.name: value.shape for value in self._session.get_inputs()}
        outputs = {value.name: value.shape for value in self._session.get_outputs()}
        if not {"input_ids", "attention_mask"} <= set(self._inputs) or "logits" not in outputs:
            raise BadInput(
                f"'{file}' is not a decoder with a cache, as edgeq writes it; "
                "give an export of edgeq"
            )
        self.vocabulary = int(outputs["logits"][-1])

    @staticmethod
    def check_installed() -> None:
        """Do nothing: importing this module needed everything."""

    def logits(self, windows: NumpyArray) -> Iterator[NumpyArray]:
        """Predict every token of each window.

        Shapes: windows (count, tokens) of token ids; yields (tokens, vocabulary) float32 per
        window.
        Raises: BadInput for token ids outside the vocabulary.
        """
        if windows.size and not 0 <= windows.min() <= windows.max() < self.vocabulary:
            raise BadInput(
                f"token ids reach from {windows.min()} to {windows.max()}, "
                f"but the model's vocabulary has {self.vocabulary} tokens; "
                "use the tokenizer of this model"
            )
        for ids in windows:
            (found,) = self._session.run(["logits"], self._feeds(ids[np.newaxis].astype(np.int64)))
            yield found[0]

    def _feeds(self, ids: NumpyArray) -> dict[str, NumpyArray]:
        empty = {
            name: np.zeros((1, shape[1], 0, shape[3]), np.float32)
            for name, shape in self._inputs.items()
            if name.startswith("past_key_values.")
        }
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), **empty}


def open_session(file: Path, *, threads: int = 0, accuracy_level: int = EXACT) -> Any:
    """Open a session on the CPU with every product at one accuracy level.

    That includes the products that qdq graphs are fused into.
    """
    graph = onnx.load(str(file), load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = accuracy_level
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(file.parent.resolve())
    )
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=[PROVIDER])

"""Compute logits of an exported ONNX graph in ONNX Runtime, to check exports as users run them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from edgeq.errors import BadInput
from edgeq.types import NumpyArray, Rounding

PROVIDER = "CPUExecutionProvider"
FILE_NAME = "model.onnx"
EXACT = 0  # the accuracy level at which ONNX Runtime computes in float32
EIGHT_BITS = 4  # the one at which it rounds activations, and its own choice for qdq graphs
NUMPY_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
}
IDS = "input_ids"
LOGITS = "logits"
ALL_LOGITS = ("num_logits_to_keep", "logits_to_keep")  # zero asks for those of every token
FILLED = ("attention_mask", "position_ids", *ALL_LOGITS)


class OnnxRuntimeLogits:
    """A LogitSource over an exported directory or its model.onnx, on the CPU, of any maker.

    Every window starts with an empty cache. The graph runs as it ships: at accuracy level 4 ONNX
    Runtime rounds activations to 8 bits. With `exact` it runs at level 0, whatever level it was
    exported with: activations stay in float32, so that the logits are those of the weights in the
    file. The file is not changed.

    Raises: BadInput for a file that ONNX Runtime cannot load.
    """

    def __init__(self, path: Path | str, *, threads: int = 0, exact: bool = False) -> None:
        file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        try:
            self._session = open_session(
                file, threads=threads, accuracy_level=EXACT if exact else None
            )
            self.rounding = None if exact else rounding_of(file)
        # protobuf and ONNX Runtime raise a type of their own for each way to be wrong
        except Exception as failure:
            reason = " ".join(str(failure).split())
            raise BadInput(
                f"ONNX Runtime cannot load '{file}': {reason}; export it again or check the path"
            ) from failure
        assert self._session.get_providers()[0] == PROVIDER
        self._file = file
        check_decoder(self._session, file)
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        outputs = {value.name: value.shape for value in self._session.get_outputs()}
        stated = outputs[LOGITS][-1]
        self.vocabulary = stated if isinstance(stated, int) else None

    @staticmethod
    def check_installed() -> None:
        """Do nothing: importing this module needed everything."""

    def logits(self, windows: NumpyArray) -> Iterator[NumpyArray]:
        """Predict every token of each window.

        Shapes: windows (count, tokens) of token ids; yields (tokens, vocabulary) float32 per
        window.
        Raises: BadInput for token ids outside the vocabulary.
        """
        most = self.vocabulary
        if windows.size and (windows.min() < 0 or (most is not None and windows.max() >= most)):
            raise BadInput(
                f"token ids reach from {windows.min()} to {windows.max()}, "
                f"but the model's vocabulary has {most} tokens; use the tokenizer of this model"
            )
        for ids in windows:
            (found,) = self._session.run([LOGITS], self._feeds(ids[np.newaxis]))
            if found.ndim != 3 or found.shape[1] != len(ids):
                raise BadInput(
                    f"'{self._file}' gives logits of shape {found.shape} for {len(ids)} tokens; "
                    "give a graph that predicts at every token"
                )
            yield found[0].astype(np.float32, copy=False)

    def _feeds(self, ids: NumpyArray) -> dict[str, NumpyArray]:
        """Fill every input: the tokens, what follows from their number, and an empty cache.

        Shapes: ids (1, tokens).
        """
        filled = {IDS: ids, "attention_mask": np.ones_like(ids)}
        filled["position_ids"] = np.arange(ids.shape[1])[np.newaxis]
        feeds = {}
        for name, value in self._inputs.items():
            dtype = NUMPY_TYPES[value.type]
            if name in filled:
                feeds[name] = filled[name].astype(dtype)
            elif name in ALL_LOGITS:
                feeds[name] = np.zeros(value.shape, dtype)
            else:
                feeds[name] = np.zeros((1, value.shape[1], 0, value.shape[3]), dtype)
        return feeds


def check_decoder(session: Any, file: Path) -> None:
    """Refuse a graph that does not predict tokens, or with an input that is not filled here.

    Raises: BadInput.
    """
    inputs = session.get_inputs()
    is_decoder = any(value.name == IDS for value in inputs)
    if not is_decoder or all(value.name != LOGITS for value in session.get_outputs()):
        raise BadInput(
            f"'{file}' is no decoder: it lacks the input 'input_ids' or the output 'logits'; "
            "give a graph that predicts tokens from tokens"
        )
    for value in inputs:
        known = value.name in (IDS, *FILLED) or is_empty_cache(value)
        if not known or value.type not in NUMPY_TYPES:
            raise BadInput(
                f"'{file}' takes {value.name!r} ({value.type}, {value.shape}); edgeq runs "
                "graphs of token ids, mask, positions, and a cache in float32 or float16"
            )


def is_empty_cache(value: Any) -> bool:
    """Say whether an input is keys or values of earlier tokens, of which there are none at first.

    Their shape is (texts, heads, earlier tokens, head size).
    """
    sizes = value.shape
    fixed = len(sizes) == 4 and all(isinstance(sizes[axis], int) for axis in (1, 3))
    return fixed and value.name.startswith("past")


def open_session(file: Path, *, threads: int = 0, accuracy_level: int | None = EXACT) -> Any:
    """Open a session on the CPU with every product at one accuracy level, or (None) as it ships.

    That includes the products that qdq graphs are fused into.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only
    if accuracy_level is None:
        return onnxruntime.InferenceSession(str(file), options, providers=[PROVIDER])
    graph = onnx.load(str(file), load_external_data=False)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = accuracy_level
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(file.parent.resolve())
    )
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=[PROVIDER])


def rounding_of(file: Path) -> Rounding | None:
    """Say how ONNX Runtime rounds the activations of a graph at the level that it ships with.

    It rounds those that meet a matrix in blocks of the matrix' own; the longest ones cost most.
    """
    longest = 0
    for node in onnx.load(str(file), load_external_data=False).graph.node:
        stated = {each.name: each.i for each in node.attribute}
        level = stated.get("accuracy_level", EXACT)
        if node.op_type == "DequantizeLinear" or level == EIGHT_BITS:
            longest = max(longest, stated.get("block_size", 0))
    return Rounding("int8", longest) if longest else None

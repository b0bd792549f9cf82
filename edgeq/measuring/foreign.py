"""Recognise exported models of any maker by what lies in their files, without a manifest.

Which runtime runs them is up to `edgeq.measuring.targets`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeq.errors import BadInput
from edgeq.files.json_files import read_json
from edgeq.files.ownership import HEAD_FILE, leads_out

CONFIG_FILE = "config.json"
GENAI_FILE = "genai_config.json"
PACKED_METHODS = ("gptq", "compressed-tensors")
"""What `quantization_config` calls the two kinds of directories that have a runtime here."""
MLX_KEY = "quantization"
SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.gguf", re.IGNORECASE)
ONNX_PLACES = ("model.onnx", "onnx/model.onnx")
SHOWN = 4  # files that a refusal names
RUNS = "GGUF, ONNX, MLX, GPTQ and compressed-tensors"


@dataclass(frozen=True, slots=True)
class Exported:
    """The format of an exported model and what its runtime opens."""

    kind: str
    path: Path


def exported_file(path: Path, kind: str) -> Exported:
    """Take a single file of a format; of a GGUF in parts that is the first one.

    Raises: BadInput for another part, and for parts that are missing.
    """
    if kind == "gguf":
        check_parts(path)
    return Exported(kind, path)


def check_parts(path: Path) -> None:
    """Refuse a GGUF in parts that cannot be opened by this file.

    Raises: BadInput for another part than the first, and for parts that are missing.
    """
    named = SPLIT_NAME.fullmatch(path.name)
    if named is None:
        return
    parts = parts_of(path)
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise BadInput(
            f"{str(path)!r} is one of {len(parts)} parts, and {missing[0]!r} is not beside it; "
            "fetch all parts"
        )
    if path != parts[0]:
        raise BadInput(f"{str(path)!r} is one of {len(parts)} parts; give {parts[0].name!r}")


def parts_of(path: Path) -> list[Path]:
    """List the files of a GGUF: itself, or its parts by their names."""
    named = SPLIT_NAME.fullmatch(path.name)
    if named is None:
        return [path]
    count, ending = int(named["parts"]), path.suffix
    names = (f"{named['stem']}-{part:05}-of-{count:05}{ending}" for part in range(1, count + 1))
    return [path.with_name(name) for name in names]


def foreign_directory(path: Path) -> Exported | None:
    """Find what kind of export a directory without a manifest holds; None for anything else.

    Raises: BadInput for a kind that no runtime here runs, and for several files to choose from.
    """
    if not path.is_dir() or (path / HEAD_FILE).is_file():
        return None
    config = config_of(path)
    has_weights = next(path.glob("*.safetensors"), None) is not None
    if has_weights:
        return packed_directory(path, config)
    graph, file = onnx_directory(path), gguf_directory(path)
    if graph is not None and file is not None:
        raise BadInput(
            f"{str(path)!r} holds an ONNX graph and a GGUF model ({graph.path.name}, "
            f"{file.path.name}); name one of them"
        )
    return graph or file


def packed_directory(path: Path, config: Mapping[str, Any]) -> Exported | None:
    """Recognise a directory of packed safetensors by its config.

    Raises: BadInput for a method that no runtime here runs.
    """
    if is_mlx(config):
        return Exported("mlx", path)
    method = method_of(config)
    if method in PACKED_METHODS:
        return Exported(method, path)
    return None


def is_mlx(config: Mapping[str, Any]) -> bool:
    """Say whether a config is one that mlx-lm writes beside quantized weights."""
    stated = config.get(MLX_KEY)
    return isinstance(stated, dict) and "bits" in stated and "group_size" in stated


def method_of(config: Mapping[str, Any]) -> str | None:
    """Read how a config says that the weights are packed; None where it says nothing."""
    stated = config.get("quantization_config")
    method = stated.get("quant_method") if isinstance(stated, dict) else None
    return method if isinstance(method, str) else None


def refused_method(path: Path) -> str | None:
    """Name the packing of a directory that no runtime here runs, as its config calls it."""
    method = method_of(config_of(path)) if path.is_dir() else None
    return None if method in PACKED_METHODS else method


def onnx_directory(path: Path) -> Exported | None:
    """Find the graph of a directory: that of genai_config.json, model.onnx, or the only one.

    Raises: BadInput for several graphs of other names.
    """
    for name in (*genai_graph(path), *ONNX_PLACES):
        if (path / name).is_file():
            return Exported("onnx", path / name)
    files = sorted([*path.glob("*.onnx"), *path.glob("onnx/*.onnx")])
    return None if not files else Exported("onnx", only(path, files, "ONNX graphs"))


def genai_graph(path: Path) -> list[str]:
    """Read which graph of a directory onnxruntime-genai runs.

    Raises: BadInput for a config that names none, or a file outside of the directory.
    """
    if not (path / GENAI_FILE).is_file():
        return []
    config: Any = read_json(path / GENAI_FILE)
    try:
        name = config["model"]["decoder"]["filename"]
    except (LookupError, TypeError):
        name = None
    if not isinstance(name, str) or leads_out(name):
        raise BadInput(
            f"{str(path / GENAI_FILE)!r} names no graph of a decoder in this directory; "
            "give the .onnx file of a text model"
        )
    return [name]


def gguf_directory(path: Path) -> Exported | None:
    """Find the GGUF file of a directory.

    Raises: BadInput for several models.
    """
    files = [each for each in sorted(path.glob("*.gguf")) if each == parts_of(each)[0]]
    files = [each for each in files if not each.name.lower().startswith("mmproj")]
    return None if not files else exported_file(only(path, files, "GGUF models"), "gguf")


def only(path: Path, files: list[Path], what: str) -> Path:
    """Take the only file there is.

    Raises: BadInput for several, naming some.
    """
    if len(files) > 1:
        names = ", ".join(str(each.relative_to(path)) for each in files[:SHOWN])
        raise BadInput(f"{str(path)!r} holds {len(files)} {what} ({names}); name one of them")
    return files[0]


def config_of(path: Path) -> Mapping[str, Any]:
    """Read a config as far as kinds are told apart by it; a bad one is left to who loads it."""
    try:
        return read_json(path / CONFIG_FILE)
    except BadInput:
        return {}

"""Say what helps where a directory or a file is no checkpoint, though it looks like one.

What makes a checkpoint complete is checked by `edgeq.architectures.blocks`.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path

from edgeq.decoder import Decoder
from edgeq.errors import BadInput
from edgeq.files.ownership import HEAD_FILE
from edgeq.files.plain_files import read_file

SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
SMALL = 4096  # bytes: files that were meant to be others are texts of a few lines
UNFINISHED = (".part", ".partial", ".incomplete", ".crdownload", ".download", ".aria2", ".tmp")
SHARD_NAME = re.compile(r"(.+-)(\d{5})-of-(\d{5})\.safetensors")
OTHER_FRAMEWORKS = {
    "*.h5": "TensorFlow's",
    "*.msgpack": "Flax's",
    "*.npz": "NumPy's",
    "*.onnx": "ONNX's",
    "*.mlpackage": "Core ML's",
    "*.tflite": "TensorFlow Lite's",
    "*.nemo": "NeMo's",
}
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.distcp")

LORA = ".lora_"
MERGE = "merge it into its base model (peft: merge_and_unload), save that and give the result"
BY_PREFIX = {
    "base_model.model.": f"PEFT saved it; {MERGE}",
    "_orig_mod.": "torch.compile wrapped the model; save the model inside of it",
    "module.": "a parallel wrapper saved it; save the model inside of it",
    "language_model.": "it is the language half of a larger model; give a text-only checkpoint",
    "text_model.": "it is the language half of a larger model; give a text-only checkpoint",
}
BY_NAME = {
    "attention.wq.": "that is Meta's own layout; give the checkpoint in Hugging Face's",
    "blk.": "these are names of GGUF; give the .gguf file or the original checkpoint",
    "transformer.h.": "that is the layout of GPT-2 and its kin; give a model of a supported type",
    "gpt_neox.": "that is the layout of GPT-NeoX; give a model of a supported type",
    "model.decoder.layers.": "that is the layout of OPT and its kin; "
    "give a model of a supported type",
    "decoder.layers.": "that is a decoder of an encoder-decoder model or one saved without its "
    "model; give a whole model of a supported type",
    "transformer_blocks.": "it draws pictures; give a language model",
    "down_blocks.": "it draws pictures; give a language model",
}
PACKED = (
    ("qweight", "packed by GPTQ or AWQ"),
    ("weight_packed", "packed by compressed-tensors"),
    ("weight_scale", "of 8-bit numbers with scales beside them"),
    ("quant_state", "packed by bitsandbytes"),
    ("absmax", "packed by bitsandbytes"),
    ("SCB", "packed by bitsandbytes"),
)
ORIGINAL = "the model is quantized already; start from the full-precision checkpoint"


def explain_no_weights(path: Path) -> BadInput:
    """Say what a directory holds instead of model.safetensors or an index of shards."""
    for find in (own_output, adapter, broken_link, lone_files, unfinished, others, inner):
        found = find(path)
        if found is not None:
            return BadInput(found)
    return BadInput(f"{path} holds no weights; it needs {SINGLE_FILE} or {SHARD_INDEX}")


def own_output(path: Path) -> str | None:
    if not (path / HEAD_FILE).is_file():
        return None
    return (
        f"{path} is quantized already, a checkpoint of edgeq; "
        "give the original model, or export or evaluate it"
    )


def adapter(path: Path) -> str | None:
    if not ((path / ADAPTER_CONFIG).is_file() or list(path.glob("adapter_model.*"))):
        return None
    try:
        base = json.loads(read_file(path / ADAPTER_CONFIG))["base_model_name_or_path"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        base = None
    named = f" {base!r:.100}" if isinstance(base, str) and base else ""
    return (
        f"{path} holds an adapter (PEFT) and no model; merge it into its base model{named} "
        "(peft: merge_and_unload), save that and give the result"
    )


def broken_link(path: Path) -> str | None:
    for name in (SINGLE_FILE, SHARD_INDEX):
        if (path / name).is_symlink():
            return (
                f"{path / name} is a link to a file that is not there; fetch the checkpoint again"
            )
    return None


def lone_files(path: Path) -> str | None:
    """Name safetensors files that no index leads to, under whatever name."""
    names = sorted(file.name for file in path.glob("*.safetensors"))
    if not names:
        return None
    if (path / "model_index.json").is_file() or names[0].startswith("diffusion_"):
        return f"{path} is a pipeline of diffusers; give the directory of a language model"
    if names == ["consolidated.safetensors"]:
        return (
            f"{path} holds only consolidated.safetensors, in the layout of its maker; "
            f"fetch {SINGLE_FILE} or {SHARD_INDEX} with its shards"
        )
    shards = [match for match in map(SHARD_NAME.fullmatch, names) if match]
    counts = {int(shard[3]) for shard in shards}
    if len(names) == 1 and counts <= {1}:
        return (
            f"{path} holds {names[0]} and no {SHARD_INDEX}; "
            f"if that is the whole model, rename it to {SINGLE_FILE}"
        )
    if counts:
        return (
            f"{path} holds {len(shards)} of {max(counts)} shards and no {SHARD_INDEX}, "
            "which says what is where; fetch it, and shards that are missing"
        )
    return (
        f"{path} holds {', '.join(names[:3])} and no {SHARD_INDEX}, which says what is where; "
        f"fetch it, or leave one file named {SINGLE_FILE}"
    )


def unfinished(path: Path) -> str | None:
    for file in sorted(path.iterdir()):
        if file.name.endswith(UNFINISHED) and "safetensors" in file.name:
            return f"{path} holds {file.name}, a download that was not finished; fetch it again"
    return None


def others(path: Path) -> str | None:
    """Name weights of other formats."""
    for pattern in PICKLE_PATTERNS:
        for found in sorted(path.glob(pattern)):
            return (
                f"{path} holds only pickles ({found.name}), which edgeq never loads; "
                "convert it to safetensors"
            )
    for found in sorted(path.glob("*.gguf")):
        return f"{path} holds no {SINGLE_FILE}; to use the GGUF file in it give {found}"
    for pattern, whose in OTHER_FRAMEWORKS.items():
        for found in sorted(path.glob(pattern)):
            return (
                f"{path} holds weights in {whose} format ({found.name}); "
                "give the model's safetensors"
            )
    return None


def inner(path: Path) -> str | None:
    """Name a directory inside that has what this one lacks."""
    for pattern in (f"*/{SINGLE_FILE}", f"*/{SHARD_INDEX}", f"snapshots/*/{SINGLE_FILE}"):
        for found in sorted(path.glob(pattern)):
            return f"{path} holds no {SINGLE_FILE}; for the model inside of it give {found.parent}"
    return None


def check_content(path: Path) -> None:
    """Refuse a file that was saved in the place of another: a pointer or a web page.

    Raises: BadInput; a file that is missing, empty or cannot be read is left to its reader.
    """
    if not path.is_file():
        return
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(SMALL if size < SMALL else 64)
    except OSError:
        return
    if start.startswith(b"version https://git-lfs"):
        raise BadInput(
            f"{path} is a pointer of git-lfs and not the file itself; "
            "in the clone run: git lfs pull"
        )
    head = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise BadInput(
            f"{path} is a web page and not the file itself; "
            "fetch it again, logged in where the model asks for it"
        )
    if path.suffix in {".safetensors", ".gguf"} and 0 < size < SMALL:
        refuse_answer(path, start)


def refuse_answer(path: Path, content: bytes) -> None:
    """Refuse what a server said instead of giving a file. Raises: BadInput."""
    try:
        said = " ".join(content.decode("ascii").split())
    except UnicodeDecodeError:
        return
    if said.isprintable():
        raise BadInput(
            f"{path} holds a text and no weights ({said[:80]!r}); fetch it again, "
            "logged in where the model asks for it"
        )


def explain_dtype(tensor: str, dtype: str) -> str:
    """Say what to do about a tensor of a type that weights are not read from."""
    stored = f"tensor {tensor!r} is stored as {dtype}; weights must be F32, F16, BF16 or F64"
    packed = dtype.startswith(("F8", "F6", "F4", "U8", "I8", "E8", "U32"))
    return f"{stored}, start from the full-precision checkpoint" if packed else stored


def check_names(decoder: Decoder, tensors: Collection[str]) -> None:
    """Refuse checkpoints of other layouts, packed ones and such without embedding or head.

    What is wrong with single tensors inside of blocks is left to `edgeq.architectures.blocks`.

    Raises: BadInput saying what was found and what helps.
    """
    for tensor in tensors:
        for part, how in PACKED:
            if tensor.rpartition(".")[2].startswith(part):
                raise BadInput(f"tensor {tensor!r} is {how}: {ORIGINAL}")
        if LORA in tensor:
            raise BadInput(f"tensor {tensor!r} belongs to an adapter; {MERGE}")
    if not any(tensor.startswith(f"{decoder.blocks}.") for tensor in tensors):
        raise BadInput(explain_layout(decoder, tensors))
    if decoder.embedding not in tensors:
        raise BadInput(
            f"the checkpoint lacks {decoder.embedding!r}, the embedding; "
            "fetch the rest, or save the whole model again"
        )
    if not decoder.tied_head and decoder.head not in tensors:
        raise BadInput(
            f"the checkpoint lacks {decoder.head!r}, and config says that the head is not tied; "
            "fetch the rest, or set tie_word_embeddings to true in config.json "
            "if embedding and head are one matrix"
        )


def explain_layout(decoder: Decoder, tensors: Collection[str]) -> str:
    """Say how tensors are named where no block of the model is among them."""
    first = f"{decoder.block_name(0)}."
    inner = next(iter(decoder.layers[0].tensor_shapes()), "")
    wanted = f"a {decoder.model_type} model has {first}{inner}"
    if not tensors:
        return f"the checkpoint holds no tensors, and {wanted}; fetch the checkpoint again"
    names = sorted(tensors)
    example = next((name for name in names if ".0." in f".{name}"), names[0])
    helps = "convert the checkpoint to Hugging Face's layout"
    bare = first.partition(".")[2]
    prefix, inside, _ = example.partition(first)
    if not inside and example.startswith(bare):
        helps = "it was saved without its head; load it as a causal language model and save that"
    elif inside and prefix:
        helps = f"take the prefix {prefix!r} away"
    else:
        helps = next((BY_NAME[key] for key in BY_NAME if key in example), helps)
    wrapped = (key for key in BY_PREFIX if f".{key}" in f".{example}")
    helps = next((BY_PREFIX[key] for key in wrapped), helps)
    return f"the checkpoint holds {example!r}, and {wanted}; {helps}"

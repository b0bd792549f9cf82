"""Hash what edgeq writes, to compare two versions: checkpoints and all five exports of two models.

    uv run python -m benchmarks.same_bytes before.json                         before a change
    uv run python -m benchmarks.same_bytes after.json --against before.json    after it

Both on the same machine. Exits 1 and names the files when something differs. About five minutes on
2 cores. Commands run as a user runs them, so the script does not know how edgeq is built inside.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.synthetic import byte_tokenizer
from edgeq.files.ownership import TIMED_FILES

FORMATS = ("gguf", "mlx", "onnx", "gptq", "compressed-tensors")
EXPORTS = [f"--export={name}" for name in FORMATS]
GLASS_LAYERS = {
    "attn.W_Q": "self_attn.q_proj",
    "attn.W_K": "self_attn.k_proj",
    "attn.W_V": "self_attn.v_proj",
    "attn.W_O": "self_attn.o_proj",
    "ffn.W1": "mlp.gate_proj",
    "ffn.W3": "mlp.up_proj",
    "ffn.W2": "mlp.down_proj",
}
ROTATED = ("attn.W_Q", "attn.W_K")
ON_CPU = ("--backend", "cpu")
RUNS: dict[str, Sequence[str]] = {
    # The feed-forward is 341 wide, which fills no container's blocks: it stays dense here.
    "glassllm in five formats": ("glass", "--keep-dense=*.mlp.*", *EXPORTS),
    "glassllm, all layers": (
        "glass",
        "--bits=3",
        "--group-size=64",
        "--asymmetric",
        "--quality=best",
    ),
    "glassllm, annealed with outlier columns": (
        "glass",
        "--bits=2",
        "--outlier-columns=0.02",
        "--recipe=recipe.toml",
        "--propagation-strength=auto",
    ),
    "demo in five formats": ("demo", "--samples=8", "--sequence-length=128", *EXPORTS),
}
RECIPE = """\
sweeps = 12
relaxed_sweeps = true
alternations = 1
anneal_rounds = 1
anneal_steps = 20
samples = 16
"""


def main() -> None:
    """Write the hashes of every file, and compare them where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path, help="the hashes of another version")
    parser.add_argument(
        "--only", choices=RUNS, action="append", help="one of the runs; may be repeated"
    )
    arguments = parser.parse_args()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="edgeq-same-bytes-") as folder:
        place = Path(folder)
        write_glass(place / "glass")
        (place / "recipe.toml").write_text(RECIPE, encoding="utf-8")
        for name in arguments.only or RUNS:
            found |= hashes_of(place, name)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    print(f"{len(found)} files, all together {digest}")
    if arguments.against:
        known = json.loads(arguments.against.read_text(encoding="utf-8"))
        other = [name for name in sorted({*known, *found}) if known.get(name) != found.get(name)]
        differences = "\n".join(f"differs: {name}" for name in other)
        print(differences or f"the same as in {arguments.against}")
        sys.exit(1 if other else 0)


def hashes_of(place: Path, name: str) -> dict[str, str]:
    """Quantize once and hash every file of the output, by run and path."""
    output = place / "output"
    model, *options = RUNS[name]
    command = [sys.executable, "-m", "edgeq", "quantize", model, "--output", str(output)]
    command += ["--force", *ON_CPU, "--calibration=speeches", *options, *short_windows(model)]
    subprocess.run(command, cwd=place, check=True, stdout=subprocess.DEVNULL)
    paths = sorted(
        path for path in output.rglob("*") if path.is_file() and path.name not in TIMED_FILES
    )
    return {
        f"{name}: {path.relative_to(output)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def short_windows(model: str) -> Sequence[str]:
    """Shorten the calibration sequences of a model that cannot read more tokens at once."""
    return ("--sequence-length=128",) if model == "glass" else ()


def write_glass(folder: Path) -> None:
    """Write glassllm's English model as a Llama of safetensors, with one token per byte."""
    glass = np.load(files("glassllm") / "weights" / "en.npz")
    sizes = json.loads(str(glass["__config__"]))
    heads = {"attn.W_Q": sizes["n_heads"], "attn.W_K": sizes["n_kv_heads"]}
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": sizes["vocab_size"],
        "hidden_size": sizes["d_model"],
        "intermediate_size": 8 * sizes["d_model"] // 3,
        "num_hidden_layers": sizes["n_layers"],
        "num_attention_heads": sizes["n_heads"],
        "num_key_value_heads": sizes["n_kv_heads"],
        "max_position_embeddings": sizes["max_len"],
        "rms_norm_eps": sizes["eps"],
        "rope_theta": sizes["rope_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "dtype": "float32",
    }
    tensors = {
        "model.embed_tokens.weight": glass["E"],
        "model.norm.weight": glass["norm_f.gamma"],
    }
    for block in range(sizes["n_layers"]):
        prefix = f"model.layers.{block}."
        tensors[f"{prefix}input_layernorm.weight"] = glass[f"blocks.{block}.norm1.gamma"]
        tensors[f"{prefix}post_attention_layernorm.weight"] = glass[f"blocks.{block}.norm2.gamma"]
        for key, name in GLASS_LAYERS.items():
            weight = glass[f"blocks.{block}.{key}"].T
            if key in ROTATED:
                # Rotary pairs are neighbours in glassllm and half a head apart in transformers.
                pairs = weight.reshape(heads[key], -1, 2, weight.shape[1])
                weight = pairs.swapaxes(1, 2).reshape(weight.shape)
            tensors[f"{prefix}{name}.weight"] = weight
    folder.mkdir()
    stored = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(byte_tokenizer(), encoding="utf-8")


if __name__ == "__main__":
    main()

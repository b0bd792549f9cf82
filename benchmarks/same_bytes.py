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

FORMATS = ("gguf", "mlx", "onnx", "gptq", "compressed-tensors")
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
    # 341 columns fill no container's blocks, so those layers stay dense where everything is
    # exported
    "glassllm in five formats": (
        "glass",
        "--keep-dense",
        "*.mlp.*",
        *(f"--export={name}" for name in FORMATS),
    ),
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
    "demo in five formats": (
        "demo",
        "--samples=8",
        "--sequence-length=128",
        *(f"--export={name}" for name in FORMATS),
    ),
}
RECIPE = (
    "sweeps = 12\nrelaxed_sweeps = true\nalternations = "
    "1\nanneal_rounds = 1\nanneal_steps = 20\nsamples = 16\n"
)


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
        print(
            "\n".join(f"differs: {name}" for name in other) or f"the same as in {arguments.against}"
        )
        sys.exit(1 if other else 0)


def hashes_of(place: Path, name: str) -> dict[str, str]:
    """Quantize once and hash every file of the output, by run and path."""
    output = place / "output"
    model, *options = RUNS[name]
    command = [
        sys.executable,
        "-m",
        "edgeq",
        "quantize",
        model,
        "--output",
        str(output),
        "--force",
        *ON_CPU,
        *options,
    ]
    subprocess.run(
        [*command, *short_windows(model)], cwd=place, check=True, stdout=subprocess.DEVNULL
    )
    paths = sorted(path for path in output.rglob("*") if path.is_file())
    return {
        f"{name}: {path.relative_to(output)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }


def short_windows(model: str) -> Sequence[str]:
    """Give options for what a model cannot read more of."""
    return ("--sequence-length=128",) if model == "glass" else ()


def write_glass(folder: Path) -> None:
    """Write glassllm's English model as a Llama of safetensors, with one token per byte."""
    stored = np.load(files("glassllm") / "weights" / "en.npz")
    sizes = json.loads(str(stored["__config__"]))
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
        "model.embed_tokens.weight": stored["E"],
        "model.norm.weight": stored["norm_f.gamma"],
    }
    for block in range(sizes["n_layers"]):
        prefix = f"model.layers.{block}."
        tensors[f"{prefix}input_layernorm.weight"] = stored[f"blocks.{block}.norm1.gamma"]
        tensors[f"{prefix}post_attention_layernorm.weight"] = stored[f"blocks.{block}.norm2.gamma"]
        for key, name in GLASS_LAYERS.items():
            weight = stored[f"blocks.{block}.{key}"].T
            if (
                key in ROTATED
            ):  # rotary pairs lie next to each other there, half a head apart in transformers
                weight = (
                    weight.reshape(heads[key], -1, 2, weight.shape[1])
                    .swapaxes(1, 2)
                    .reshape(weight.shape)
                )
            tensors[f"{prefix}{name}.weight"] = weight
    folder.mkdir()
    save_file(
        {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text(byte_tokenizer(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Try each backend and runtime by a small computation: what `edgeq doctor` reports.

A library may take its process down with it. So the trials of one library run in a process of their
own, `python -m edgeq.commands.trials GROUP`, which prints a line of JSON for each of them.
"""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from edgeq.errors import NotInstalled, reason_of
from edgeq.registry import BACKENDS, LOGITS, load, load_backend
from edgeq.words import install

LONGEST = 180  # seconds: more than the first import of a framework takes on a slow disk


@dataclass(frozen=True, slots=True)
class Trial:
    """Names what is tried, the packages whose versions are told, and the extra that brings it."""

    kind: str
    name: str
    packages: tuple[str, ...]
    extra: str
    run: Callable[[str], None]


def try_backend(name: str) -> None:
    """Take the root of a small matrix on a backend."""
    import numpy as np  # noqa: PLC0415

    backend = load_backend(name)
    found = backend.to_numpy(backend.cholesky(backend.asarray(4 * np.eye(3, dtype=np.float32))))
    if not np.allclose(found, 2 * np.eye(3)):
        raise ArithmeticError("it computes wrong numbers")


def try_runtime(name: str) -> None:
    """Import what runs files in a runtime."""
    load(LOGITS[name], f"runtime {name!r}")


def try_llama_cpp(name: str) -> None:
    """Start llama.cpp and let it load what it computes with."""
    try_runtime(name)
    library = needed("cyllama.llama.llama_cpp", "llama-cpp")
    library.disable_logging()
    library.llama_backend_init()
    library.ggml_backend_load_all()


def try_onnx_runtime(name: str) -> None:
    """Run a graph of one node in ONNX Runtime."""
    import numpy as np  # noqa: PLC0415

    try_runtime(name)
    runtime, helper = needed("onnxruntime", "onnx"), needed("onnx.helper", "onnx")
    number = 1  # of float32 in ONNX
    ends = [helper.make_tensor_value_info(end, number, [2]) for end in ("x", "y")]
    node = helper.make_node("Sqrt", ["x"], ["y"])
    graph = helper.make_graph([node], "trial", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": np.array([4, 9], np.float32)})
    if found.tolist() != [2, 3]:
        raise ArithmeticError("it computes wrong numbers")


def try_genai(_: str) -> None:
    """Import onnxruntime-genai, and ask what it was built for."""
    needed("onnxruntime_genai", "onnx").is_cuda_available()


def try_mlx_lm(name: str) -> None:
    """Import mlx-lm, and compute a root in MLX."""
    try_runtime(name)
    if needed("mlx.core", "mlx").sqrt(4.0).item() != math.sqrt(4):
        raise ArithmeticError("it computes wrong numbers")


def try_transformers(name: str) -> None:
    """Make the smallest config of transformers', and import the loader of a runtime."""
    if name in LOGITS:
        try_runtime(name)
    needed("transformers", "cpu").AutoConfig.for_model("llama")
    if name == "compressed-tensors":
        needed("compressed_tensors", name)
    if name == "gptqmodel":
        import_module("gptqmodel")


def try_gguf(_: str) -> None:
    """Import what reads and writes GGUF files."""
    needed("gguf", "gguf")


def try_tasks(_: str) -> None:
    """Find what answers tasks by their names; importing it takes long."""
    if find_spec("lm_eval") is None:
        needed("lm_eval", "tasks")


def needed(module: str, extra: str) -> Any:
    """Import a module that an extra brings. Raises: NotInstalled."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise NotInstalled(f"{error.name} is not installed; {install(extra)}") from error


GROUPS: Mapping[str, Sequence[Trial]] = {
    "torch": (
        Trial("backend", "cpu", ("torch",), "cpu", try_backend),
        Trial("backend", "cuda", ("torch",), "cuda", try_backend),
        Trial("backend", "mps", ("torch",), "cpu", try_backend),
        Trial("backend", "reference", ("numpy",), "cpu", try_backend),
        Trial("runtime", "transformers", ("transformers",), "cpu", try_transformers),
        Trial(
            "runtime",
            "compressed-tensors",
            ("compressed-tensors",),
            "compressed-tensors",
            try_transformers,
        ),
    ),
    "mlx": (
        Trial("backend", "mlx", ("mlx",), "mlx", try_backend),
        Trial("runtime", "mlx-lm", ("mlx-lm",), "mlx", try_mlx_lm),
    ),
    "llama.cpp": (
        Trial("runtime", "llama.cpp", ("cyllama",), "llama-cpp", try_llama_cpp),
        Trial("files", "gguf", ("gguf",), "gguf", try_gguf),
    ),
    "tasks": (Trial("tasks", "lm-eval", ("lm-eval",), "tasks", try_tasks),),
    "onnx": (
        Trial("runtime", "onnxruntime", ("onnxruntime", "onnx"), "onnx", try_onnx_runtime),
        Trial("runtime", "onnxruntime-genai", ("onnxruntime-genai",), "onnx", try_genai),
    ),
}
"""What is tried, by the process that tries it."""


def run_trial(trial: Trial) -> dict[str, Any]:
    """Try one thing, and say whether it works, what does not, and what is missing."""
    problem, missing = None, False
    try:
        trial.run(trial.name)
    except NotInstalled as error:
        # without an import that failed, it is a device that is not there
        problem, missing = str(error).partition("; ")[0], isinstance(error.__cause__, ImportError)
    except (Exception, SystemExit) as error:  # whatever a broken library raises
        problem = reason_of(error)
    return {"works": problem is None, "problem": problem, "missing": missing}


def versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Read the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def main(group: str) -> None:
    """Try everything of a group, and print a line for each."""
    for trial in GROUPS[group]:
        print(json.dumps(run_trial(trial)), flush=True)


def try_all() -> list[dict[str, Any]]:
    """Try everything, each group in a process beside the others; a crash ends only its own."""
    command = [sys.executable, "-m", "edgeq.commands.trials"]
    running = {
        group: subprocess.Popen(
            [*command, group], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for group in GROUPS
    }
    return [row for group, process in running.items() for row in _rows(group, process)]


def _rows(group: str, process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    """Read what a process found; what it did not come to failed with it."""
    try:
        out, _ = process.communicate(timeout=LONGEST)
        ended = f"its process crashed (status {process.returncode})"
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
        ended = f"it did not end within {LONGEST} s"
    found = [json.loads(line) for line in out.splitlines() if line.startswith('{"works"')]
    lost = {"works": False, "problem": ended, "missing": False}
    rows = []
    for index, trial in enumerate(GROUPS[group]):
        said = found[index] if index < len(found) else lost
        named = {"kind": trial.kind, "name": trial.name, "extra": trial.extra}
        rows.append({**named, "versions": versions_of(trial.packages), **said})
    return rows


assert {trial.name for trials in GROUPS.values() for trial in trials} >= set(BACKENDS)

if __name__ == "__main__":
    main(sys.argv[1])

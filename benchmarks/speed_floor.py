"""The floor of a run on a GPU: passes in bfloat16, and the products H and D, with nothing around.

`benchmarks.speed_cuda` compares runs with it.
"""

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from benchmarks.synthetic import make_config
from edgeq.streams.blockwise import CALIBRATION_BATCH

SITES = ("hidden", "hidden", "hidden", "inner")  # widths of the inputs of a block's layers


@dataclass(frozen=True, slots=True)
class Shapes:
    """The model and its text: random weights, random tokens.

    The vocabulary takes no part in a block's time.
    """

    sizes: Mapping[str, int]
    blocks: int
    samples: int
    length: int
    group_size: int = 128


SHAPES = {
    "llama-3-8b": Shapes(
        {"hidden": 4096, "inner": 14336, "heads": 32, "key_heads": 8, "vocabulary": 8192},
        blocks=32,
        samples=128,
        length=2048,
    ),
    "tiny": Shapes(
        {"hidden": 256, "inner": 384, "heads": 4, "key_heads": 2, "vocabulary": 512},
        blocks=4,
        samples=6,
        length=64,
    ),
}


@dataclass(slots=True)
class Setup:
    """What is measured, where, and until when parts are started."""

    shapes: Shapes
    device: str
    blocks: int
    max_vram: str | None
    folder: Path
    end: float
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def has_gpu(self) -> bool:
        return self.device == "cuda"

    def wait(self) -> None:
        """Wait until the device has done what is queued."""
        if self.has_gpu:
            torch.cuda.synchronize()

    def now(self) -> float:
        """Read the clock once the device has done what is queued."""
        self.wait()
        return time.perf_counter()

    def rest(self) -> None:
        """Give unused memory of the device back, and forget how much it was."""
        gc.collect()
        if self.has_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def measure_floor(setup: Setup) -> dict[str, float]:
    """Time passes of a stream through a block in bfloat16, and the products H and D of its inputs.

    The block is of the model's own code in transformers. Units: seconds for all tokens.
    """
    sizes, length = setup.shapes.sizes, setup.shapes.length
    config = AutoConfig.for_model(**make_config(**{**sizes, "blocks": 1}))
    model = AutoModel.from_config(config, dtype=torch.bfloat16).to(setup.device).eval()
    windows = max(1, min(setup.shapes.samples, CALIBRATION_BATCH // length))
    passes = setup.shapes.samples / windows
    kind = {"device": setup.device, "dtype": torch.bfloat16}
    hidden = torch.randn(windows, length, sizes["hidden"], **kind)

    def forward() -> None:
        with torch.inference_mode():
            model(inputs_embeds=hidden, use_cache=False)

    inputs = [torch.randn(windows * length, sizes[width], **kind) for width in SITES]
    others = [torch.randn_like(x) for x in inputs]

    def second_moments() -> None:
        for x in inputs:
            product(x, x)

    def drifts() -> None:
        for x, y in zip(inputs, others, strict=True):
            product(x, y)

    work = {"forward": forward, "H": second_moments, "D": drifts}
    return {name: passes * shortest(run, setup.now) for name, run in work.items()}


def product(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Multiply inputs in bfloat16, summed up in float32 where that can be asked for."""
    if x.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(x.T, y, out_dtype=torch.float32)
    return x.T @ y


def shortest(work: Callable[[], None], now: Callable[[], float], runs: int = 3) -> float:
    """Time the shortest of a few runs, after one that warms up."""
    work()
    taken = []
    for _ in range(runs):
        start = now()
        work()
        taken.append(now() - start)
    return min(taken)


def floor_of(parts: Mapping[str, float], share: float) -> float:
    """Add up the floor of a block whose full-precision stream runs on a share of the windows."""
    return (1 + share) * parts["forward"] + parts["H"] + share * parts["D"]

"""A tiny checkpoint that no framework makes: layers are rounded by the NumPy backend."""

from pathlib import Path

from benchmarks.fuzz.inputs import Quiet, rounding_job, write_model
from edgeq.checkpoint.reader import Checkpoint
from edgeq.run.pipeline import quantize


def tiny_checkpoint(folder: Path) -> Checkpoint:
    """Write a Llama of two blocks and its plainly rounded checkpoint into a folder."""
    write_model(folder / "model")
    return quantize(rounding_job(folder / "model"), folder / "checkpoint", Quiet())

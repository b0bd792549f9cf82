"""Gather what a page says of one run: checkpoint, report, recipe, and what was measured of it."""

import glob
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.measuring.inspection import parameter_count, tensor_rows
from edgeq.pages import shown
from edgeq.pages.charts import Table, shortened
from edgeq.pages.quality import Quality, Sized
from edgeq.recipe.recipe import make_recipe
from edgeq.recipe.setting_rules import DENSE_BITS
from edgeq.run.advice import advise
from edgeq.run.finished import notes
from edgeq.run.measured import Measured, read_measured
from edgeq.run.numbers import is_count
from edgeq.run.recipe_file import toml_value
from edgeq.run.report import RunReport, read_report
from edgeq.solving.report import LayerReport

ORIGINAL = "original"
MOST_BITS = 8  # of a grid, below those of a layer kept dense
MOST_NOTES = 40  # of a page; report.json has all


@dataclass(frozen=True, slots=True)
class RunData:
    """A finished run with all that pages say of it.

    name tells it from other runs on a page. sizes has the original first.

    Units: bytes.
    """

    name: str
    checkpoint: Checkpoint
    report: RunReport
    measured: Measured
    sizes: Mapping[str, int]

    @property
    def model(self) -> str:
        """Return the name of the model."""
        return self.checkpoint.record.name

    @property
    def quality(self) -> Quality:
        """Return what was measured, empty where nothing was."""
        return self.measured.quality or {}

    @property
    def answers(self) -> list[dict[str, str]]:
        """Return what both models answered to each prompt."""
        keys = ("prompt", "original", "quantized")
        return [{key: each.get(key) or "" for key in keys} for each in self.measured.answers]

    @property
    def made_by(self) -> str:
        """Return the version of edgeq that quantized the model."""
        return str(self.checkpoint.head.get("edgeq", "of an unknown version"))

    @property
    def bits(self) -> float | None:
        """Return the bits per weight of the whole model."""
        return self.report.bits_per_weight.get("model")

    @property
    def original_bytes(self) -> int:
        """Return the size of the original."""
        return next(size for name, size in self.sizes.items() if name.startswith(ORIGINAL))

    @property
    def result_bytes(self) -> int:
        """Return the size of what a runtime is given: the first export, or the checkpoint."""
        exports = [
            size
            for name, size in self.sizes.items()
            if not name.startswith(ORIGINAL) and name != "checkpoint"
        ]
        return exports[0] if exports else self.sizes["checkpoint"]

    @property
    def sized(self) -> Sized:
        """Return the run as a point of size and KL divergence."""
        between = shown.interval_of(self.quality, "kl")
        return Sized(self.name, self.result_bytes, self.quality.get("kl"), between)


def gather(checkpoint: Checkpoint, name: str) -> RunData:
    """Read the report of a run and what was measured of it.

    Raises: BadInput for what is damaged.
    """
    report = read_report(checkpoint)
    measured = read_measured(checkpoint) or Measured()
    sizes = dict(measured.sizes)
    if not any(each.startswith(ORIGINAL) for each in sizes):
        sizes = {"original at 16 bits": 2 * parameter_count(checkpoint)} | sizes
    sizes.setdefault("checkpoint", checkpoint.stored_bytes())
    return RunData(name, checkpoint, report, measured, sizes)


def measure_command(run: RunData) -> str:
    """Write the command that measures a run, with MODEL for the original."""
    return shlex.join(["edgeq", "report", run.name, "--reference", "MODEL"])


def run_notes(run: RunData) -> list[str]:
    """List what was not done as usual, in sentences."""
    computed = notes(run.report, run.checkpoint.grids())
    found = [each for each in dict.fromkeys((*run.measured.notes, *computed)) if each]
    if len(found) > MOST_NOTES:
        left = len(found) - MOST_NOTES
        return [*found[:MOST_NOTES], f"{left} more notes are left out here"]
    return found


def run_advice(run: RunData) -> list[str]:
    """List what a user can do to have a better result.

    Call `run_notes` first, which refuses a damaged report.
    """
    checkpoint = run.checkpoint
    try:
        recipe = make_recipe(checkpoint.head["recipe"])
    except BadInput as error:
        return [f"What could be done better is not known: {error}"]
    stated = checkpoint.head.get("calibration")
    found = advise(run.report, checkpoint.grids(), recipe, stated)
    return [each for each in dict.fromkeys((*run.measured.advice, *found)) if each]


def odd_layers(run: RunData) -> Table | None:
    """Lay out layers that were damped again, clamped, or saw too little; None without any."""
    clamped = dict(run.report.clamped)
    rows = []
    for layer in run.report.layers:
        scales = clamped.pop(f"{layer.name}.weight", 0)
        marks = [*marks_of(layer), str(scales or "")]
        if any(marks):
            rows.append([layer.name, *marks])
    rows += [[name, "", "", "", str(scales)] for name, scales in clamped.items()]
    if not rows:
        return None
    header = ["layer", "damping", "propagation damping", "inputs never seen", "clamped scales"]
    return shortened(header, rows, "layers")


def marks_of(layer: LayerReport) -> list[str]:
    """Write what was raised for a layer, and how many inputs no text reached."""
    damping = propagation = ""
    if layer.damping_retries and layer.damping is not None:
        damping = f"raised {layer.damping_retries} times to {layer.damping:g}"
    if layer.propagation_damping is not None:
        if layer.propagation_retries:
            propagation = (
                f"raised {layer.propagation_retries} times to {layer.propagation_damping:g}"
            )
        elif layer.few_tokens:
            propagation = f"{layer.propagation_damping:g}, few tokens"
    return [damping, propagation, str(layer.dead_columns or "")]


def layers_table(layers: Sequence[LayerReport]) -> Table | None:
    """Lay out all layers, the largest error first, with the error after each stage."""
    measured = [layer for layer in layers if layer.losses]
    if not measured:
        return None
    stages = dict.fromkeys(stage for layer in measured for stage in layer.losses)
    rows = []
    for layer in sorted(measured, key=lambda layer: -layer.final_loss):
        kind = layer.type or f"{layer.bits} bits, group {layer.group_size or 'row'}"
        shape = " x ".join(map(str, layer.shape))
        errors = [shown.percent(layer.losses.get(stage), 2) for stage in stages]
        rows.append([layer.name, kind, shape, *errors])
    return shortened(["layer", "stored as", "shape", *map(str, stages)], rows, "layers")


def more_bits(layers: Sequence[LayerReport], *, in_list: bool) -> str:
    """Write the override that gives the layer with the largest error more bits; empty without one.

    in_list: as an element of a list in TOML, else as a table of its own.
    """
    measured = [layer for layer in layers if layer.losses and layer.bits < DENSE_BITS]
    if not measured:
        return ""
    worst = max(measured, key=lambda layer: layer.final_loss)
    bits = DENSE_BITS if worst.bits >= MOST_BITS else MOST_BITS
    name = toml_value(glob.escape(worst.name))
    if in_list:
        return f"{{ layers = {name}, bits = {bits} }},"
    return f"[[overrides]]\nlayers = {name}\nbits = {bits}"


def tensors_table(checkpoint: Checkpoint) -> Table:
    """Lay out all tensors, those of equal name, shape and grid together."""
    rows = []
    for row in tensor_rows(checkpoint):
        shape = " x ".join(map(str, row["shape"]))
        rows.append([row["name"], str(row["count"]), shape, row["stored_as"]])
    return shortened(["tensor", "how many", "shape", "stored as"], rows, "kinds of tensors")


def settings_table(checkpoint: Checkpoint) -> Table:
    """Lay out the recipe as it was used."""
    rows = [[name, setting(value)] for name, value in checkpoint.head["recipe"].items()]
    return Table(["setting", "value"], rows)


def setting(value: Any) -> str:
    """Write the value of a setting on one line."""
    if value is None:
        return shown.NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(map(setting, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {setting(each)}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def texts_used(checkpoint: Checkpoint) -> Table | None:
    """Lay out the calibration texts; None where nothing was calibrated on."""
    stated = checkpoint.head.get("calibration")
    if stated is None:
        return None
    rows = [
        [text["name"], f"{text['share']:.0%}", f"{text['samples']:,}", f"{text['tokens']:,}"]
        for text in stated["texts"]
    ]
    return Table(["calibration text", "share", "sequences", "tokens in it"], rows)


def tokens_solved_on(checkpoint: Checkpoint) -> int | None:
    """Count the tokens of all calibration sequences; None where there are none."""
    stated = checkpoint.head.get("calibration")
    length = checkpoint.head["recipe"].get("sequence_length")
    if stated is None or not is_count(length):
        return None
    return int(length * sum(text["samples"] for text in stated["texts"]))


def dense_table(report: RunReport) -> Table | None:
    """Lay out the matrices that stay as they are; None where all were quantized."""
    rows = [[name, f"{count:,}"] for name, count in report.kept_dense.items()]
    return Table(["matrices kept dense", "how many"], rows) if rows else None


def experts_table(report: RunReport) -> Table | None:
    """Lay out experts, those with the fewest tokens first; None without any."""
    rows = [
        [each.name, f"{each.tokens:,}", shown.percent(each.lent_share, 0)]
        for each in sorted(report.experts, key=lambda each: each.tokens)
    ]
    header = ["expert", "tokens that reached it", "lent by others"]
    return shortened(header, rows, "experts") if rows else None

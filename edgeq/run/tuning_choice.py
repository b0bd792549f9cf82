"""Whether a run tunes what it has solved, and in which way that fits into memory."""

from dataclasses import asdict, dataclass

from edgeq.errors import TooLittleMemory
from edgeq.planning.device_memory import Device
from edgeq.planning.moments import Process
from edgeq.planning.process_memory import machine_bytes
from edgeq.planning.tuning import TuningPlan, plan_tuning, sizes_of
from edgeq.protocols import ModelSource
from edgeq.recipe.layer_grids import Grids, plan_grids
from edgeq.recipe.recipe import Recipe
from edgeq.recipe.setting_rules import AUTOMATIC
from edgeq.registry import BACKENDS, can_tune
from edgeq.run.tuning import drawing_recipe, tuning_of
from edgeq.words import show_size

ON_THE_CPU = (None, "cpu")  # of `edgeq.registry.BackendEntry.device`; MLX names none
ROOM = 0.7  # of the machine's memory: the rest is other programs'


@dataclass(frozen=True, slots=True)
class Choice:
    """How a run tunes, None where it does not, and what is to be said of a choice it made."""

    plan: TuningPlan | None = None
    note: str = ""


def choose_tuner(
    source: ModelSource,
    recipe: Recipe,
    backend: str,
    process: Process,
    limit: int | None,
    device: Device | None = None,
) -> Choice:
    """Choose how to tune within limits, and whether to, where the recipe leaves that open.

    Units: bytes.
    Raises: TooLittleMemory where tuning is asked for and no way of it keeps the limit.
    """
    if not recipe.tune:
        return Choice()
    if recipe.tune == AUTOMATIC and not can_tune(backend):
        return Choice(note=f"not tuned: backend {backend!r} does not tune")
    grids = plan_grids(source, recipe)
    if not has_codes(grids):
        return Choice(note="not tuned: nothing is quantized")
    try:
        plan = planned(source, grids, recipe, process, limit, device)
    except TooLittleMemory as error:
        if recipe.tune == AUTOMATIC:
            return Choice(note=f"not tuned: {error}")
        raise
    return settled(plan, backend) if recipe.tune == AUTOMATIC else Choice(plan)


def has_codes(grids: Grids) -> bool:
    """Say whether any tensor is quantized."""
    return any(grid is not None for _, grid in grids.values())


def settled(plan: TuningPlan, backend: str) -> Choice:
    """Tune on a GPU, or where model and gradients fit into memory."""
    if BACKENDS[backend].device not in ON_THE_CPU:
        return Choice(plan, "tuned, as the device is a GPU")
    if plan.way.resident:
        taken = show_size(plan.peak.total)
        return Choice(plan, f"tuned, as model and gradients fit into memory, with {taken}")
    return Choice(note="not tuned: model and gradients do not fit into memory; --tune streams them")


def planned(
    source: ModelSource,
    grids: Grids,
    recipe: Recipe,
    process: Process,
    limit: int | None,
    device: Device | None = None,
) -> TuningPlan:
    """Plan how a model on these grids is tuned. Raises: TooLittleMemory."""
    drawn = drawing_recipe(recipe)
    sizes = sizes_of(
        source.record.decoder,
        grids,
        windows=drawn.samples,
        length=drawn.sequence_length,
        tuning=asdict(tuning_of(recipe)),
    )
    machine = machine_bytes()
    room = None if machine is None else int(ROOM * machine)
    return plan_tuning(sizes, process, limit, room, device)

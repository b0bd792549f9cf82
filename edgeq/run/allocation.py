"""Spend a budget: one type for each tensor, of the least predicted KL divergence.

What a type costs is measured by `edgeq.run.costs`; what may be chosen is `edgeq.run.candidates`.
The result is a recipe, which can be read, changed and used again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from edgeq.algorithms.knapsack import Choice, Knapsack, Option
from edgeq.errors import BadInput
from edgeq.files.json_files import read_json
from edgeq.files.ownership import ALLOCATION_FILE, REPORT_FILE, RUN_FILE, temporary_of
from edgeq.recipe.layer_grids import check_exports, plan_grids
from edgeq.recipe.recipe import Recipe, make_recipe, recipe_settings
from edgeq.registry import BACKENDS, load_exporter
from edgeq.run.budget import Budget, infeasible
from edgeq.run.candidates import EMBEDDING, Container, Item, find_items, with_options
from edgeq.run.costs import Costs, measure_costs
from edgeq.run.observing import Observer
from edgeq.run.pipeline import Job, start_calibration
from edgeq.words import show_megabytes

POINTS = 24  # of the curve of sizes against predicted KL divergence
DEFAULT_FORMAT = "gguf"
MEASURING = "measuring types, block"
POINTS_SHOWN = 6  # of them on screen, beside the chosen one
LEAST_GAIN = 0.02  # of the predicted KL divergence: less is within what predictions miss by


@dataclass(frozen=True, slots=True)
class Allocation:
    """How a budget is spent, in plain data, as report.json states it.

    overrides and outer are the settings that a recipe gets; patterns of layers come in the order of
    execution. bytes counts the whole of what the budget is of, limit what was asked for. curve has
    the least predicted KL divergence of all sizes, uniform that of one type for all layers, with
    the best type of the embedding that the same limit leaves, and beside it the least of that size.
    measured, where it was evaluated, is the KL divergence that was found, by which runtime and on
    how many tokens. slack bounds what rounded sizes lost.
    """

    asked: dict[str, Any]
    format: str
    limit: int
    bytes: int
    beside: dict[str, int]
    predicted_kl: float
    slack: float
    outer: dict[str, Any]
    overrides: list[dict[str, Any]]
    spent: dict[str, list[float]]
    curve: list[dict[str, float]]
    uniform: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    measured: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A budget with all that is known before anything is measured."""

    budget: Budget
    container: Container
    items: tuple[Item, ...]
    fixed: int
    beside: dict[str, int]
    limit: int

    @property
    def left(self) -> int:
        """Count the bytes that the tensors with a choice may take."""
        return self.limit - self.fixed

    @property
    def largest(self) -> int:
        """Count the bytes of all weights with the largest types."""
        return self.fixed + sum(max(o.size for o in item.options) for item in self.items)

    @property
    def smallest(self) -> int:
        """Count the bytes of all weights with the smallest types."""
        return self.fixed + sum(min(o.size for o in item.options) for item in self.items)


def pose(job: Job, budget: Budget) -> Question:
    """Find out what a budget is about, and refuse one that no types can keep.

    Without an export it is that of a GGUF file.

    Raises: BadInput with the smallest budget that would do.
    """
    if job.recipe.type is not None:
        raise BadInput(
            f"type {job.recipe.type} says what all layers are stored in, and a budget chooses that "
            "layer by layer; leave out one of them"
        )
    if job.importance is not None:
        raise BadInput(
            "--imatrix with a budget: what types cost is measured on calibration text, and an "
            "importance matrix is for runs without one; leave out one of them"
        )
    exporters = tuple(job.exporters) or (load_exporter(DEFAULT_FORMAT),)
    container = Container(job.source, exporters)
    items = find_items(job.recipe, container)
    grids = plan_grids(job.source, job.recipe)
    first = with_options(grids, items, [0] * len(items))
    # what the recipe or an export has against these types is said before anything is measured
    check_exports(job.exporters, job.source, first)
    plan_grids(job.source, chosen_recipe(job.recipe, items, [0] * len(items)))
    fixed = container.bytes_of(first) - sum(item.options[0].size for item in items)
    beside = budget.beside(container)
    limit = budget.limit(container, beside)
    question = Question(budget, container, tuple(items), fixed, beside, limit)
    if question.smallest > limit:
        raise infeasible(budget, container, beside, question.smallest)
    return question


def allocate(question: Question, costs: Costs, notes: Sequence[str] = ()) -> Allocation:
    """Choose a type for each item by what each costs, within the budget."""
    items = question.items
    options = [
        [Option(each.size, cost) for each, cost in zip(item.options, of_item, strict=True)]
        for item, of_item in zip(items, costs, strict=True)
    ]
    knapsack = Knapsack(options)
    chosen = knapsack.choose(question.left)
    picked = [item.options[n] for item, n in zip(items, chosen.options, strict=True)]
    beside = sum(question.beside.values())
    outer, overrides = chosen_settings(items, chosen.options)
    spent = {
        item.name: [option.size, of_item[number]]
        for item, option, number, of_item in zip(items, picked, chosen.options, costs, strict=True)
    }
    notes = list(notes)
    largest = max(sum(max(o.size for o in item) for item in options), knapsack.smallest)
    if chosen.size < question.left and question.left >= largest:
        notes.append("the budget is larger than the types that cost least take")
    return Allocation(
        question.budget.asked,
        formats_of(question.container),
        question.limit + beside,
        question.fixed + chosen.size + beside,
        question.beside,
        chosen.cost,
        chosen.slack,
        outer,
        overrides,
        spent,
        curve_of(knapsack, question, options),
        uniform_types(knapsack, question, options),
        notes,
    )


def chosen_settings(
    items: Sequence[Item], chosen: Sequence[int]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write a choice of one option for each item as settings of a recipe, and as overrides."""
    outer: dict[str, Any] = {}
    overrides = []
    for item, number in zip(items, chosen, strict=True):
        settings = item.options[number].settings
        if not item.layers:
            outer |= settings
        overrides += [{"layers": pattern, **settings} for pattern in item.patterns]
    return outer, overrides


def chosen_recipe(recipe: Recipe, items: Sequence[Item], chosen: Sequence[int]) -> Recipe:
    """Put a choice of one option for each item into a recipe."""
    return recipe_of(recipe, *chosen_settings(items, chosen))


def formats_of(container: Container) -> str:
    """Name the formats that bytes are counted in."""
    return ", ".join(each.format.name for each in container.exporters)


def curve_of(
    knapsack: Knapsack, question: Question, options: Sequence[Sequence[Option]]
) -> list[dict[str, float]]:
    """List sizes with the least predicted KL divergence at each, the smallest first."""
    beside = question.fixed + sum(question.beside.values())
    largest = sum(max(option.size for option in item) for item in options)
    step = (largest - knapsack.smallest) / (POINTS - 1)
    points: dict[int, Choice] = {}
    for place in range(POINTS):
        found = knapsack.choose(knapsack.smallest + round(place * step))
        points[found.size] = found
    return [{"bytes": beside + size, "predicted_kl": points[size].cost} for size in sorted(points)]


def uniform_types(
    knapsack: Knapsack, question: Question, options: Sequence[Sequence[Option]]
) -> list[dict[str, Any]]:
    """Say what one type for all layers takes and costs, for each that layers may have.

    Layers that cannot have it take the type next in size, as llama.cpp does. The embedding has the
    best type that keeps within the budget, or the one that llama.cpp gives it.
    """
    items = question.items
    labels = dict.fromkeys(
        option.label for item in items if item.name != EMBEDDING for option in item.options
    )
    beside = question.fixed + sum(question.beside.values())
    found = []
    for label in labels:
        size, cost = 0, 0.0
        for item, of_item in zip(items, options, strict=True):
            if item.name != EMBEDDING:
                number = nearest(item, label, items)
                size, cost = size + of_item[number].size, cost + of_item[number].cost
        for item, of_item in zip(items, options, strict=True):
            if item.name == EMBEDDING:
                fitting = [each for each in of_item if size + each.size <= question.left]
                best = min(fitting, key=lambda each: each.cost, default=None)
                best = best or of_item[usual_embedding(item)]
                size, cost = size + best.size, cost + best.cost
        best_kl = knapsack.choose(size).cost
        row = {"type": label, "bytes": beside + size, "predicted_kl": cost}
        found.append(row | {"best_of_size": best_kl})
    return sorted(found, key=lambda row: (row["bytes"], row["type"]))


def usual_embedding(item: Item) -> int:
    """Number the type that llama.cpp gives an embedding, or else the largest."""
    labels = [option.label for option in item.options]
    return labels.index("Q6_K") if "Q6_K" in labels else len(labels) - 1


def nearest(item: Item, label: str, items: Sequence[Item]) -> int:
    """Number an item's option of a name, or the one next to it in bits per weight."""
    labels = [option.label for option in item.options]
    if label in labels:
        return labels.index(label)
    wanted = next(o.grid.bits for each in items for o in each.options if o.label == label)
    return min(range(len(labels)), key=lambda n: (abs(item.options[n].grid.bits - wanted), n))


def gain_words(stored: Mapping[str, Any]) -> list[str]:
    """Say how a budget was spent, and what that gained over one type for all layers."""
    size, limit = show_megabytes(stored["bytes"]), show_megabytes(stored["limit"])
    beside = "".join(f", {part} {show_megabytes(took)}" for part, took in stored["beside"].items())
    lines = [
        f"{size} of {limit} ({stored['format']}{beside})",
        f"KL divergence: {kl_words(stored)}",
    ]
    best = best_uniform(stored)
    if best is None:
        lines.append("no one type for all layers keeps within it")
    else:
        gain = 1 - stored["predicted_kl"] / best["predicted_kl"] if best["predicted_kl"] else 0.0
        less = f"{gain:.0%} less" if gain >= LEAST_GAIN else "next to nothing less"
        lines.append(
            f"predicted {less} than with {best['type']} for all layers: "
            f"{best['predicted_kl']:.3g} at {show_megabytes(best['bytes'])}, "
            f"where types by layer give {best['best_of_size']:.3g}"
        )
    if stored["slack"]:
        lines.append(f"sizes were rounded: at most {stored['slack']:.2g} of KL divergence lost")
    return [*lines, *stored["notes"]]


def best_uniform(stored: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find the one type for all layers that costs least within a budget; None where none fits."""
    fitting = [row for row in stored["uniform"] if row["bytes"] <= stored["limit"]]
    return min(fitting, key=lambda row: row["predicted_kl"], default=None)


def kl_words(stored: Mapping[str, Any]) -> str:
    """State the KL divergence that is predicted, and what was measured where it was."""
    measured = stored.get("measured")
    if measured is None:
        return f"{stored['predicted_kl']:.3g} predicted"
    return (
        f"{stored['predicted_kl']:.3g} predicted, {measured['kl']:.3g} measured "
        f"({measured['runtime']}, {measured['tokens']} tokens)"
    )


def curve_words(stored: Mapping[str, Any]) -> list[str]:
    """Write a few sizes with the least predicted KL divergence, and where the choice lies."""
    chosen = {"bytes": stored["bytes"], "predicted_kl": stored["predicted_kl"]}
    step = max(1, -(-len(stored["curve"]) // POINTS_SHOWN))
    points = [point for point in stored["curve"][::step] if point["bytes"] != chosen["bytes"]]
    lines = []
    for point in sorted([*points, chosen], key=lambda point: point["bytes"]):
        mark = "  chosen" if point is chosen else ""
        lines.append(f"{show_megabytes(point['bytes']):>9}  {point['predicted_kl']:.3g}{mark}")
    return lines


def recipe_of(recipe: Recipe, outer: Mapping[str, Any], overrides: Sequence[Any]) -> Recipe:
    """Put what was chosen into a recipe, before its own overrides, which win."""
    settings = recipe_settings(recipe) | dict(outer)
    settings["overrides"] = [*overrides, *settings["overrides"]]
    if "embedding_type" in outer:
        settings.pop("embedding_bits", None)
    return make_recipe(settings)


def spend(job: Job, question: Question, observer: Observer) -> Job:
    """Measure what types cost, spend the budget, and give the job that quantizes accordingly.

    Calibration text is drawn once for both.
    """
    calibration = start_calibration(job, observer)
    tell = partial(observer.progressed, MEASURING)
    with job.backend.working():
        costs = measure_costs(job, question.items, calibration.windows, tell)
    allocation = allocate(question, costs, measured_notes(job.backend.name))
    found = with_allocation(job, asdict(allocation))
    grids = plan_grids(found.source, found.recipe)
    check_exports(found.exporters, found.source, grids)
    counted = question.container.bytes_of(grids) + sum(question.beside.values())
    assert counted <= allocation.limit, "bytes of tensors add up"
    return replace(found, make_calibration=lambda *_: calibration)


def measured_notes(backend: str) -> list[str]:
    """Say what a backend left to torch."""
    if BACKENDS[backend].framework == "torch":
        return []
    return [f"sensitivities were measured by torch on the CPU, all else by {backend}"]


def with_allocation(job: Job, stored: Mapping[str, Any]) -> Job:
    """Give a job the recipe that an allocation asks for.

    Raises: BadInput where it is none.
    """
    try:
        recipe = recipe_of(job.recipe, stored["outer"], stored["overrides"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"the stored allocation cannot be read ({type(error).__name__}); "
            "start over with --force and without --resume"
        ) from error
    return replace(job, recipe=recipe, allocation=stored)


def stored_allocation(output: Path, question: Question) -> Mapping[str, Any] | None:
    """Find how the run that is there, unfinished or complete, spent its budget; None without one.

    Whether a run with blocks is that of this model and recipe is seen when it goes on. A choice
    that is kept without one counts where it is of the same tensors and formats.

    Raises: BadInput where it was another budget.
    """
    budget = question.budget
    working = temporary_of(output.resolve())
    for path, inside in (
        (working / RUN_FILE, ("progress", "budget")),
        (output / REPORT_FILE, ("budget",)),
        (working / ALLOCATION_FILE, ()),
    ):
        found: Any = read_json(path) if path.is_file() else {}
        for key in inside:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict) or not found:
            continue
        if found.get("asked") != budget.asked:
            raise BadInput(
                f"output {str(output)!r}: its run has another budget ({found.get('asked')}, now "
                f"{budget.asked}); continue it with what it was started with, or start over with "
                "--force and without --resume"
            )
        if path.name == ALLOCATION_FILE and not answers(found, question):
            continue
        return found
    return None


def answers(stored: Mapping[str, Any], question: Question) -> bool:
    """Say whether a stored choice is one of the same tensors, in the same formats and bytes."""
    spent = stored.get("spent")
    return (
        stored.get("format") == formats_of(question.container)
        and stored.get("limit") == question.limit + sum(question.beside.values())
        and isinstance(spent, dict)
        and set(spent) == {item.name for item in question.items}
    )

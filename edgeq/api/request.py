"""What a run may be asked for beside settings, and how that is read from keyword arguments."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from edgeq.api.arguments import (
    PathLike,
    number_of,
    optional_path,
    path_text,
    paths_of,
    size_of,
    switch_of,
    text_of,
    texts_of,
    whole_of,
)
from edgeq.api.settings import RunSettings, over_recipe, split_settings
from edgeq.run.asked import Asked
from edgeq.run.spending import Place


class Argument(NamedTuple):
    """What an argument is when it is left out, and a line on what it does."""

    default: Any
    help: str


class PlanArguments(RunSettings, total=False):
    """Keyword arguments of `edgeq.plan` and `edgeq.allocate`, named like options of commands."""

    revision: str | None
    recipe: PathLike | None
    calibration: PathLike | Sequence[PathLike]
    imatrix: PathLike | None
    export: str | Sequence[str]
    keep_dense: str | Sequence[str]
    file_size: str | int | None
    bits_per_weight: float | None
    fits: str | int | None
    context: int | None
    max_ram: str | int | None
    max_vram: str | int | None
    backend: str


class RunArguments(PlanArguments, total=False):
    """Keyword arguments of `edgeq.quantize`, named like the options of the command."""

    evaluate: bool
    force: bool
    resume: bool


ARGUMENTS: Mapping[str, Argument] = {
    "revision": Argument(None, "Take this branch, tag or commit of a model on the hub."),
    "recipe": Argument(None, "Read settings from this TOML file; those given here win."),
    "calibration": Argument(
        (),
        'Calibrate on this text, or several: files, "mix" (ten kinds that ship with edgeq), one of '
        'its kinds, or "self" (the model writes it first), each perhaps with its share, as '
        '"self=0.5". Without one, on the kinds of the mix that the model can use ("default").',
    ),
    "imatrix": Argument(
        None, "Round without calibrating, by this importance matrix of llama.cpp (a file)."
    ),
    "export": Argument(
        (), 'Also write these formats, as "gguf" or ["gguf", "onnx"]; see `edgeq.formats()`.'
    ),
    "keep_dense": Argument(
        (), 'Leave layers that match these patterns as they are, as "*.down_proj".'
    ),
    "file_size": Argument(
        None,
        'Choose types so that the file stays within this size, as "95MB" or a number of bytes.',
    ),
    "bits_per_weight": Argument(None, "The same within so many bits for each weight, as 3.4."),
    "fits": Argument(
        None, "The same within the memory of a device, with the text of `context` tokens."
    ),
    "context": Argument(None, "Length of the text for `fits`, in tokens."),
    "max_ram": Argument(
        None, 'Stay within this much memory, as "8GB" or bytes: slower where it must be.'
    ),
    "max_vram": Argument(
        None, "The same of the memory of a GPU that has its own. Unset, what is free there."
    ),
    "backend": Argument("auto", 'Compute with "auto", "cuda", "cpu", "mps", "mlx" or "reference".'),
    "evaluate": Argument(False, "Measure the result against the original at the end."),
    "force": Argument(False, "Replace an output that edgeq wrote before."),
    "resume": Argument(False, "Continue a run that was stopped, with the same model and settings."),
    "progress": Argument(None, "Is called with an `edgeq.Progress` after each step."),
}
"""Arguments that are no settings, in the order of help."""
ALWAYS = ("model", "output")


def read_request(
    function: str, model: object, place: Place, given: Mapping[str, Any], known: Collection[str]
) -> Asked:
    """Read the keyword arguments of a function that runs, plans or allocates.

    known are the arguments of `ARGUMENTS` that it has.

    Raises: TypeError for an unknown name, BadInput for a value.
    """
    of_run = {name: given.get(name, ARGUMENTS[name].default) for name in known}
    rest = {name: value for name, value in given.items() if name not in known}
    settings, options = split_settings(function, rest, {*ALWAYS, *known})
    context, bits = of_run["context"], of_run["bits_per_weight"]
    revision = of_run["revision"]
    return Asked(
        path_text("model", model),
        place,
        settings=over_recipe(
            optional_path("recipe", of_run["recipe"]), settings, of_run["keep_dense"]
        ),
        revision=None if revision is None else text_of("revision", revision),
        backend=text_of("backend", of_run["backend"]),
        calibration=paths_of("calibration", of_run["calibration"]),
        imatrix=optional_path("imatrix", of_run["imatrix"]),
        exports=texts_of("export", of_run["export"]),
        export_options=options,
        budget={
            "file_size": size_of("file_size", of_run["file_size"]),
            "bits_per_weight": None if bits is None else number_of("bits_per_weight", bits),
            "fits": size_of("fits", of_run["fits"]),
            "context": None if context is None else whole_of("context", context, 1),
        },
        max_ram=size_of("max_ram", of_run["max_ram"]),
        max_vram=size_of("max_vram", of_run["max_vram"]),
        evaluated=switch_of("evaluate", of_run.get("evaluate", False)),
    )

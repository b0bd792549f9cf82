"""Write what a checkpoint holds beside its tensors, when all of these are solved."""

from collections.abc import Mapping
from typing import Any

from edgeq.checkpoint.reader import ORIGIN, Checkpoint
from edgeq.checkpoint.tensor_file import TensorFile
from edgeq.errors import BadInput
from edgeq.files.json_files import write_json
from edgeq.files.ownership import HEAD_FILE, RECIPE_FILE, REPORT_FILE
from edgeq.files.storage import write_bytes
from edgeq.protocols import ModelSource
from edgeq.recipe.layer_grids import bits_per_weight
from edgeq.recipe.recipe import Recipe
from edgeq.run.card import write_checkpoint_card
from edgeq.run.commits import Run
from edgeq.run.identity import IMATRIX, KEYS
from edgeq.run.recipe_file import budget_recipe, plain_recipe


def write_head(
    source: ModelSource,
    recipe: Recipe,
    allocation: Mapping[str, Any] | None,
    run: Run,
    companions: Mapping[str, bytes],
) -> None:
    """Write config.json, tokenizer files, report.json, recipe.toml, edgeq.json and the card.

    Nothing in them depends on time or place.

    Raises: BadInput when the model was changed meanwhile.
    """
    if source.fingerprint() != run.identity["source"]["fingerprint"]:
        raise BadInput(
            f"model {source.record.name!r} was changed while it was quantized; "
            "bring it back or start over"
        )
    for name, data in companions.items():
        write_bytes(run.made / name, data)
    write_json(run.made / "config.json", source.record.config())
    files = [*run.files, "outer.safetensors"]
    opened = [TensorFile(run.made / file) for file in files]
    stored = {
        name: (file.shape(name), file.tensor_bytes(name)) for file in opened for name in file.names
    }
    run.report.bits_per_weight = bits_per_weight(stored, source.record.decoder)
    write_json(run.made / REPORT_FILE, run.report.plain())
    stated = plain_recipe(recipe) if allocation is None else budget_recipe(recipe, allocation)
    write_bytes(run.made / RECIPE_FILE, stated.encode())
    known = {key: run.identity[key] for key in (*KEYS, IMATRIX) if key in run.identity}
    head = {"backend": ", ".join(run.backends), "files": files, "companions": sorted(companions)}
    known[ORIGIN] = source.record.origin.plain()
    write_json(run.made / HEAD_FILE, known | head)
    write_checkpoint_card(Checkpoint(run.made))

"""A manifest states nothing that `edgeq verify` does not check: every value, changed by hand."""

import json
import os
import shutil

import pytest

from benchmarks.fuzz.inputs import ZEROS_OF, write_inputs
from edgeq.checkpoint.certificate import write_sealed
from edgeq.errors import BadInput
from edgeq.measuring.verify import verify

MANIFEST = "manifest.json"
LEGAL = {
    "zeros": ("symmetric", "integer", "offset"),
    "scale_dtype": ("float16", "bfloat16", "float32"),
    "status": ("exact", "widened", "rescaled", "dense"),
    "format": tuple(ZEROS_OF),
}
"""Values that are not wrong by themselves, by key."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    place = tmp_path_factory.mktemp("verified") / "inputs"
    write_inputs(place)
    return place


@pytest.fixture
def export(inputs, tmp_path, request):
    """A copy of an export that a test may damage, and the checkpoint that it was made from."""
    name = request.param
    return shutil.copytree(inputs / name, tmp_path / name), inputs / ZEROS_OF[name]


every_format = pytest.mark.parametrize(
    "export",
    [
        name if name in ("gguf", "mlx", "onnx") else pytest.param(name, marks=pytest.mark.slow)
        for name in ZEROS_OF
    ],
    indirect=True,
)


def one_of_each(manifest):
    """The places of the first entries of each type, status and kind of zero points."""
    kinds = {}
    for place, entry in enumerate(manifest["tensors"]):
        kinds.setdefault((entry["type"], entry["status"], entry["zeros"]), place)
    return set(kinds.values())


def changes(value, key=""):
    """Other values for a place, of its own type and of others."""
    others = [*LEGAL.get(key, ()), None]
    if isinstance(value, bool):
        others.append(not value)
    elif isinstance(value, int):
        others += [value + 1, str(value)]
    elif isinstance(value, float):
        others += [value + 0.25, -1.0]
    elif isinstance(value, str):
        others += [value + "x", [value]]
    return [other for other in others if other != value]


def tampered(manifest):
    """Copies of a manifest with one value changed, one key more or one key fewer, and its name."""
    kept = one_of_each(manifest)
    holders = [((), manifest), (("files",), manifest["files"])]
    holders += [((key,), manifest[key]) for key in ("checkpoint", "settings") if key in manifest]
    holders += [(("tensors", place), manifest["tensors"][place]) for place in kept]
    for path, holder in holders:
        for key, value in holder.items():
            for other in [] if isinstance(value, dict | list) else changes(value, key):
                yield changed(manifest, path, {key: other}), f"{path} {key}: {other!r}"
            yield changed(manifest, path, {}, without=key), f"{path} {key}: left out"
        yield changed(manifest, path, {"unknown": "0"}), f"{path}: a key more"
        for key in set(OPTIONAL) - set(holder) if "source" in holder else ():
            for other in OPTIONAL[key]:
                yield changed(manifest, path, {key: other}), f"{path} {key}: {other!r}"
    for place in kept:
        twice = json.loads(json.dumps(manifest))
        twice["tensors"].append(twice["tensors"][place])
        yield twice, f"tensor {place}: twice"
        fewer = json.loads(json.dumps(manifest))
        del fewer["tensors"][place]
        yield fewer, f"tensor {place}: left out"


OPTIONAL = {
    "outlier_columns": (0.25, 0.0, None),
    "from": ("8 bits, group 32, symmetric", None),
    "file": ("model.gguf", None),
    "outliers": (["a", "b"], [], None),
    "grid_type": ("Q4_K", "Q4_0", "none", "", None, ["Q4_K"]),
}


def changed(manifest, path, values, *, without=None):
    copy = json.loads(json.dumps(manifest))
    holder = copy
    for key in path:
        holder = holder[key]
    holder |= values
    holder.pop(without, None)
    return copy


def is_refused(folder, against):
    try:
        return bool(verify(folder, against=against)["differences"])
    except BadInput:
        return True


@every_format
def test_an_export_as_it_was_written_has_no_difference(export):
    folder, checkpoint = export
    assert verify(folder)["differences"] == []
    assert verify(folder, against=checkpoint)["differences"] == []


@every_format
def test_every_value_that_is_changed_by_hand_is_reported(export):
    folder, _ = export
    manifest = json.loads((folder / MANIFEST).read_text())
    missed = []
    for other, what in tampered(manifest):
        (folder / MANIFEST).write_text(json.dumps(other))
        if not is_refused(folder, None):
            missed.append(what)
    assert missed == []


@every_format
def test_a_forged_manifest_with_the_right_hash_of_itself_differs_from_the_checkpoint(export):
    folder, checkpoint = export
    manifest = json.loads((folder / MANIFEST).read_text())
    missed = []
    for other, what in tampered(manifest):
        write_sealed(folder / MANIFEST, other)
        stated = json.loads((folder / MANIFEST).read_text())
        if stated != manifest and not is_refused(folder, checkpoint):
            missed.append(what)
    assert missed == []


@every_format
@pytest.mark.parametrize("plant", ["pipe", "link to nothing", "loop", "device"])
def test_what_is_no_file_is_refused_before_anything_is_read(export, plant):
    folder, _ = export
    path = folder / "config.json"
    path.unlink(missing_ok=True)
    if plant == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link to nothing": "absent", "loop": path, "device": "/dev/zero"}[plant])
    with pytest.raises(BadInput, match=r"config\.json' is no file of an export"):
        verify(folder)

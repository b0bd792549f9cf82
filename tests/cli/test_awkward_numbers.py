"""Weights that no model was trained to, and formats hold all the same: from the model to files that
verify.
"""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgeq.checkpoint.reader import Checkpoint
from edgeq.registry import FORMATS

CANNOT_HOLD = r"^edgeq: .*(no free offsets|exceeds float16, in which MLX holds both); use .*\n$"
LINEAR = "model.layers.0.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def strictly(text):
    """JSON as the standard has it: no NaN and no Infinity."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def awkward(model):
    """Rows of zeros, of one value and of tiny ones, a column of zeros, and one huge weight."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    for name in (LINEAR, EMBEDDING):
        weight = tensors[name]
        weight[0] = 0
        weight[1] = 0.01
        weight[2], weight[3], weight[4] = 1e-15, weight[3] * 1e-30, -1e-40
        weight[5, :32] = 0
        weight[:, 7] = 0
    tensors[LINEAR][6, 40] = 1e5
    save_file(tensors, file, metadata={"format": "pt"})
    return model


@pytest.mark.parametrize(
    ("bits", "zeros"), [(4, "symmetric"), (2, "symmetric"), (4, "integer"), (2, "offset")]
)
@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
def test_zeros_and_tiny_weights_go_through_every_format(
    awkward, edgeq, quick, tmp_path, bits, zeros, scale_dtype
):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'bits = {bits}\nzeros = "{zeros}"\nscale_dtype = "{scale_dtype}"\ngroup_size = 32\n'
        "anneal_rounds = 1\nanneal_steps = 5\n"
    )
    out = tmp_path / "out"
    result = edgeq("quantize", awkward, "--output", out, "--recipe", recipe, *quick)
    assert result.status == 0, result.err
    report = strictly((out / "report.json").read_text())
    assert all(0 <= loss for layer in report["layers"] for loss in layer["losses"].values())
    solved = Checkpoint(out)
    for name in (LINEAR, EMBEDDING):
        found, weight = solved.read(name), load_file(awkward / "model.safetensors")[name]
        assert np.abs(found[:5] - weight[:5]).max() < 0.01
        assert not found[0].any() or zeros == "offset"
    for name in FORMATS:
        exported = edgeq("export", out, "--format", name, "--output", tmp_path / name)
        if exported.status == 0:
            verified = edgeq("verify", tmp_path / name)
            assert verified.status == 0, verified.err
        else:
            assert re.search(CANNOT_HOLD, exported.err), exported.err

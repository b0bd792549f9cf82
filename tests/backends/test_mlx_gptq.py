"""The column solver against another implementation: mlx-lm's own GPTQ of the same layer on its own
scales.
"""

import numpy as np
import plain
import pytest
import trained

from edgeq.algorithms.damping import damped, inverse_upper_factor
from edgeq.algorithms.gptq import solve_columns
from edgeq.algorithms.problem import Problem
from edgeq.registry import load_backend
from edgeq.types import Grid, Solution

mx = pytest.importorskip("mlx.core", reason="MLX has no build for this system")
LAYERS = (
    "model.layers.1.self_attn.q_proj",
    "model.layers.2.mlp.gate_proj",
    "model.layers.3.self_attn.o_proj",
)


def gptq_of_mlx_lm(W, H, bits, group_size):
    """Codes, scales and biases. Its solver sums up H itself, so it gets inputs that have exactly
    this second moment.
    """
    from mlx import nn  # noqa: PLC0415
    from mlx_lm.quant.gptq import gptq_quantize  # noqa: PLC0415

    model = nn.Sequential(nn.Linear(W.shape[1], W.shape[0], bias=False))
    model.layers[0].weight = mx.array(W.astype(np.float32))
    inputs = np.linalg.cholesky(H).T.astype(np.float32)
    gptq_quantize(model, mx.array(inputs), bits, group_size, 8, 64, batch_size=len(inputs))
    layer = model.layers[0]
    scales, biases = (
        np.array(layer.scales).astype(np.float64),
        np.array(layer.biases).astype(np.float64),
    )
    words = np.array(layer.weight)
    codes = (words[:, :, None] >> np.arange(0, 32, bits, dtype=np.uint32)) & (2**bits - 1)
    return codes.reshape(W.shape), scales, biases


@pytest.mark.parametrize("name", ["reference", "mlx"])
@pytest.mark.parametrize("bits", [4, 2])  # mlx-lm's GPTQ takes no 3 bits
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_loss_is_that_of_mlx_lms_own_gptq(layer, bits, name):
    W, H, _ = trained.glass_layers()[layer]
    W, H = W[:, :128], H[:128, :128] + 1e-3 * np.trace(H) / len(H) * np.eye(128)
    theirs, scales, biases = gptq_of_mlx_lm(W, H, bits, 32)
    backend, grid = load_backend(name), Grid(bits, 32, "offset", "float32")
    H_damped = damped(backend.asarray(H), 0.01, backend)
    U = inverse_upper_factor(H_damped, backend)
    problem = Problem(backend.asarray(W), H_damped, grid, backend, U=U)
    fitted = Solution(backend.asarray(scales), backend.asarray(biases))
    ours = backend.to_numpy(solve_columns(problem, fitted).codes)
    scales, biases = (plain.per_column(array, 32, 128) for array in (scales, biases))
    losses = [plain.weighted_loss(scales * codes + biases, W, H).sum() for codes in (ours, theirs)]
    nearest = plain.weighted_loss(
        scales * plain.nearest(W, scales, biases, 2**bits - 1) + biases, W, H
    ).sum()
    print(f"{(ours == theirs).mean():.4%} equal codes, losses {losses}, nearest {nearest}")
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] < 0.95 * nearest

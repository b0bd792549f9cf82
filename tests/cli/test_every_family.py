"""The first families of models: forwards of both frameworks against transformers', whole runs."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeq.architectures.mlx import why_not_mlx
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import UnsupportedModel
from edgeq.sources import open_source
from edgeq_backends.mlx.activations import MlxLogits
from edgeq_backends.torch.activations import TorchLogits

pytestmark = pytest.mark.usefixtures("one_thread")


SLOW = pytest.mark.slow


@pytest.fixture(
    params=[
        "llama",
        pytest.param("mistral", marks=SLOW),
        pytest.param("qwen2", marks=SLOW),
        "qwen3",
    ]
)
def saved(request, save_model):
    return save_model(request.param)


def test_blocks_one_by_one_predict_what_transformers_predicts(rng, saved):
    windows = rng.integers(0, 300, (2, 24))
    source = open_source(str(saved))
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
        expected = model(torch.from_numpy(windows)).logits.numpy()
    np.testing.assert_array_equal(np.stack(list(TorchLogits(source).logits(windows))), expected)
    if why_not_mlx(source.record) is not None:
        with pytest.raises(UnsupportedModel, match="backend 'mlx'"):
            MlxLogits(source)
        return
    in_mlx = np.stack(list(MlxLogits(source).logits(windows)))
    assert np.abs(in_mlx - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_family_is_quantized_on_both_frameworks(edgeq, saved, quick, tmp_path):
    for backend in ("cpu", "mlx"):
        result = edgeq("quantize", saved, "-o", tmp_path / backend, *quick, "--backend", backend)
        assert result.status == 0, result.err
    on_torch, on_mlx = (Checkpoint(tmp_path / backend) for backend in ("cpu", "mlx"))
    solved = [linear.tensor for linear in on_torch.record.decoder.linears()]
    assert all(on_torch.grid(name) is not None for name in solved)
    first = solved[:3]  # what comes later follows from ties that either settles in its own way
    same = [on_torch.quantized(name).codes == on_mlx.quantized(name).codes for name in first]
    assert min(np.mean(codes) for codes in same) > 0.98

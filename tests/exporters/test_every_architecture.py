"""The first families of models: written in five formats, read back, run in four runtimes.

Others are tried in each runtime by the tests of its exporter, and in all of them by
`benchmarks.architectures.matrix`.
"""

from typing import Any

import numpy as np
import pytest
from solved_models import FOUR_BITS, TINY, in_float16, shapes_of, solved, torch_logits
from test_export_gguf import divergence
from tiny_models import tokenizer_files
from transformers import AutoConfig, AutoModelForCausalLM

from edgeq.measuring.verify import verify
from edgeq.registry import FORMATS, LOGITS, find_format, load, load_exporter

ROWS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 64},
}
"""By model type: what makes its tiny model a fair example."""
OPTIONS = {"onnx": {"accuracy_level": 0}}
NAMED = {"gguf": "gguf", "mlx": "mlx", "onnx": "genai"}
"""By format: the field of `RuntimeNames` without which it does not know a family."""
RUN = ("gguf", "mlx", "onnx", "compressed-tensors")  # GPTQModel has no wheel
CLOSE = 1e-6  # KL divergence to torch with equal weights, all in float32


@pytest.fixture(params=ROWS)
def model(request):
    settings = TINY | {"vocab_size": 320} | ROWS[request.param]
    config = AutoConfig.for_model(request.param, **settings)
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("format_name", FORMATS)
def test_what_is_written_is_read_back_and_predicts_like_torch(rng, tmp_path, model, format_name):
    export = solved(model, rng, [FOUR_BITS])
    export.files = tokenizer_files()
    exporter = load_exporter(format_name, OPTIONS.get(format_name, {}))
    runtime = NAMED.get(format_name)
    if runtime is not None and getattr(export.record.decoder.names, runtime) is None:
        reason = exporter.reject_reason(export.record, export.files, shapes_of(export))
        assert str(reason).startswith("model_type")
        return
    result = exporter.write(export, tmp_path)[0]
    found = verify(tmp_path)
    assert found["differences"] == []
    assert found["statuses"]["exact"] >= 7 * len(export.record.decoder.layers)
    assert set(found["statuses"]) <= {"exact", "dense"}
    if format_name not in RUN:  # the words are compared bit by bit
        return
    logits = load(LOGITS[find_format(format_name).runtime], format_name)(result, exact=True)
    windows = rng.integers(0, 290, (2, 48))
    kept = format_name in ("gguf", "onnx")
    weights = export.weights() if kept else in_float16(export)
    reference = torch_logits(model, weights, windows)
    assert divergence(reference, logits.logits(windows)) < CLOSE
    assert np.ptp(reference) > 1  # else anything would be close

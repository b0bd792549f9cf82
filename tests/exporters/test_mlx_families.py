"""Every family in MLX: what is written predicts in mlx-lm, and streams in the backend, as in torch.

The rows that mlx-lm computes otherwise are refused, each by its own words.
"""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from solved_models import shapes_of
from solved_rows import logits_of, save_row, solve_row

from benchmarks.architectures.rows import ROWS
from edgeq.architectures.families import families
from edgeq.architectures.mlx_config import alike_tokens
from edgeq.architectures.record import read_record
from edgeq.errors import BadInput, UnsupportedModel
from edgeq.measuring.verify import verify
from edgeq.registry import ACTIVATIONS, LOGITS, load
from edgeq.sources import open_source
from edgeq.types import Grid
from edgeq_exporters.mlx.exporter import MlxExporter

pytest.importorskip("mlx_lm", reason="needs mlx-lm", exc_type=ImportError)

CLOSE = 1e-4  # of the spread of logits: rounding of float32 moves them by 1e-5
TOKENS = 80  # more than any window, and so many that mlx-lm sorts tokens by expert
CHEAP = ("qwen3", "gemma3_text", "phi3 / phi-4-mini", "cohere2", "qwen3_moe")
REFUSED = {
    "llama gelu": "hidden_act 'gelu'",
    "qwen2 head_dim 48": "head_dim 48",
    "gemma": "mlx-lm computes gemma with gelu",
    "starcoder2": "mlx-lm computes starcoder2 with gelu",
    "arcee": "model_type 'arcee'",
    "glm": "model_type 'glm'",
    "olmo": "model_type 'olmo'",
}
COMPUTED = [name for name, (kind, _) in ROWS.items() if kind in families() and name not in REFUSED]
SLOW = [pytest.param(name, marks=[] if name in CHEAP else [pytest.mark.slow]) for name in COMPUTED]


@pytest.fixture
def windows(rng):
    return rng.integers(3, 300, (1, TOKENS))


def assert_close(found, expected, *, within=CLOSE):
    spread = expected.std()
    assert spread > 0.1  # else anything would be close
    assert np.abs(found - expected).max() < within * max(spread, np.abs(expected).max())


@pytest.mark.parametrize("name", SLOW)
def test_a_row_predicts_in_mlx_lm_and_in_the_backend_as_in_torch(rng, tmp_path, windows, name):
    solved = solve_row(name, rng)
    window = alike_tokens(solved.record.decoder)
    windows = windows[:, :window]
    written = tmp_path / "mlx"
    written.mkdir()
    MlxExporter().write(solved, written)
    found = verify(written)
    assert found["differences"] == []
    assert found["statuses"]["exact"] == len(solved.layers)
    checkpoint = save_row(solved, tmp_path)
    expected = logits_of(checkpoint, windows)
    streamed = load(LOGITS["mlx"], "evaluation")(open_source(str(checkpoint)))
    assert_close(np.stack(list(streamed.logits(windows))), expected)
    runtime = load(LOGITS["mlx-lm"], "mlx")(written, exact=True)
    # mlx-lm rounds the scale of Gemma 3's embedding to bfloat16
    within = 1e-3 if "gemma3" in name else CLOSE
    assert_close(np.stack(list(runtime.logits(windows))), expected, within=within)


YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}
YARN |= {"original_max_position_embeddings": 32, "attention_factor": 1.2079441541679836}
BY_KIND = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
OF_FULL = {
    "full_attention": YARN,
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
ALPHA = {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0}
OPTIONS = [
    ("qwen3", {"rope_parameters": YARN}),
    ("gemma3_text", {"rope_parameters": BY_KIND}),
    ("olmo3", {"rope_parameters": OF_FULL, "attention_bias": True}),
    ("hunyuan_v1_dense", {"rope_parameters": ALPHA, "attention_bias": True}),
    ("granite", {"attention_bias": True, "mlp_bias": True}),
    ("ernie4_5", {"use_bias": True, "tie_word_embeddings": True}),
    ("helium", {"attention_bias": True, "mlp_bias": True}),
    ("cohere", {"attention_bias": True}),
    ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
    ("nemotron", {"attention_bias": True, "mlp_bias": True, "partial_rotary_factor": 0.25}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 16, "mlp_bias": True}),
    ("stablelm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    ("internlm3", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    ("cohere2", {"layer_types": ["full_attention"] * 2}),
    ("gemma3_text", {"layer_types": ["full_attention"] * 2, "tie_word_embeddings": False}),
    ("ministral", {"layer_types": ["sliding_attention"] * 2}),
    ("qwen3_moe", {"mlp_only_layers": [0], "norm_topk_prob": True}),
    ("olmoe", {"norm_topk_prob": True, "tie_word_embeddings": True}),
    ("glm4_moe", {"use_qk_norm": True, "routed_scaling_factor": 2.5}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes"), OPTIONS)
def test_options_of_families_reach_mlx_lm(rng, tmp_path, windows, name, changes):
    solved = solve_row(name, rng, **changes)
    windows = windows[:, : alike_tokens(solved.record.decoder)]
    MlxExporter().write(solved, tmp_path)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    expected = logits_of(save_row(solved, checkpoint), windows)
    runtime = load(LOGITS["mlx-lm"], "mlx")(tmp_path, exact=True)
    within = 1e-3 if "gemma3" in name else CLOSE
    assert_close(np.stack(list(runtime.logits(windows))), expected, within=within)


def test_short_factors_of_longrope_reach_mlx_lm(rng, tmp_path, windows):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [float(each) for each in np.linspace(1, 2, 12)],
        "long_factor": [float(each) for each in np.linspace(3, 9, 12)],
        "partial_rotary_factor": 0.75,
    }
    solved = solve_row(
        "phi3 / phi-4-mini", rng, rope_parameters=rope, original_max_position_embeddings=64
    )
    assert alike_tokens(solved.record.decoder) == 64
    assert "up to 64 tokens" in MlxExporter().notes(solved.record, {}, {})[0]
    MlxExporter().write(solved, tmp_path)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    save_row(solved, checkpoint)
    runtime = load(LOGITS["mlx-lm"], "mlx")(tmp_path, exact=True)
    found, expected = (
        np.stack(list(runtime.logits(windows))),
        logits_of(checkpoint, windows[:, :64]),
    )
    assert_close(found[:, :64], expected)
    beyond = logits_of(checkpoint, windows)
    assert np.abs(found - beyond).max() > 0.1 * np.abs(beyond).max()
    streamed = load(LOGITS["mlx"], "evaluation")(open_source(str(checkpoint)))
    with pytest.raises(UnsupportedModel, match="other factors beyond 64"):
        list(streamed.logits(windows))


@pytest.mark.parametrize("name", REFUSED)
def test_a_row_that_mlx_lm_computes_otherwise_is_refused(rng, name):
    solved = solve_row(name, rng)
    reason = MlxExporter().reject_reason(solved.record, {}, shapes_of(solved))
    assert reason is not None and REFUSED[name] in reason
    assert "\n" not in reason


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma2", {"attn_logit_softcapping": None}, "always computes that"),
        ("gemma2", {"tie_word_embeddings": False}, "a head of its own"),
        ("stablelm", {"tie_word_embeddings": True}, "a head tied to the embedding"),
        ("seed_oss", {"tie_word_embeddings": True}, "a head tied to the embedding"),
        ("qwen2_moe", {"norm_topk_prob": True}, "expert weights that do not sum to one"),
        ("qwen2_moe", {"qkv_bias": False}, "q_proj has no bias"),
        ("qwen2_moe", {"mlp_only_layers": [0]}, "experts in some blocks only"),
        ("glm4_moe", {"n_group": 2}, "experts chosen by group"),
        ("olmoe", {"clip_qkv": 2.0}, "clipped queries"),
        ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"]}, "that slide"),
        ("olmo3", {"layer_types": ["full_attention"] * 2}, "that slide"),
        ("exaone4", {"layer_types": ["full_attention"] * 2}, "that slide"),
        (
            "phi3 / phi-4-mini",
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 16}},
            "lacks long_factor",
        ),
        (
            "hunyuan_v1_dense",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "without alpha",
        ),
        ("nemotron", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "type 'linear'"),
    ],
)
def test_options_that_a_module_of_mlx_lm_does_not_have_are_refused_by_name(
    rng, name, changes, words
):
    kind, settings = ROWS[name]
    record = dataclasses.replace(solve_row(name, rng), config=_config(kind, settings, changes))
    reason = MlxExporter().reject_reason(record.record, {}, {})
    assert reason is not None and words in reason
    assert "\n" not in reason


def _config(kind, settings, changes):
    return {"model_type": kind, "rms_norm_eps": 1e-6, **settings, **changes}


@pytest.mark.parametrize("odd", [Grid(8, 32, "offset"), Grid(4, 64, "offset"), None])
def test_experts_of_a_block_on_several_grids_are_refused(rng, tmp_path, odd):
    solved = solve_row("mixtral", rng)
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    if odd is None:
        solved.arrays[name] = solved.layers.pop(name).dequantized()
    else:
        solved.layers[name] = solve_row("mixtral", rng, odd).layers[name]
    with pytest.raises(BadInput, match="several grids") as refusal:
        MlxExporter().write(solved, tmp_path)
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_dense_experts_are_stacked_too(rng, tmp_path, windows):
    solved = solve_row("olmoe", rng)
    for name in [name for name in solved.layers if ".experts." in name and "down" in name]:
        solved.arrays[name] = solved.layers.pop(name).dequantized().astype(np.float16).astype("f4")
    written = tmp_path / "mlx"
    written.mkdir()
    MlxExporter().write(solved, written)
    found = verify(written)
    assert found["differences"] == []
    assert any(
        tensor["name"].endswith("switch_mlp.down_proj.weight[3]") and tensor["status"] == "dense"
        for tensor in found["tensors"]
    )
    expected = logits_of(save_row(solved, tmp_path), windows)
    runtime = load(LOGITS["mlx-lm"], "mlx")(written, exact=True)
    assert_close(np.stack(list(runtime.logits(windows))), expected)


def test_a_mixture_cannot_be_calibrated_in_mlx(rng, tmp_path, windows):
    source = open_source(str(save_row(solve_row("mixtral", rng), tmp_path)))
    with pytest.raises(UnsupportedModel, match="choose --backend cpu"):
        load(ACTIVATIONS["mlx"], "calibration")(source, windows)


def test_windows_that_mlx_lm_computes_leave_the_context_as_it_is(rng):
    for name in ("gemma3_text", "cohere2"):
        notes = MlxExporter().notes(solve_row(name, rng).record, {}, {})
        assert not any("cut" in note for note in notes)
    cut = solve_row("mistral window 32", rng)
    assert "cut to 32 tokens" in MlxExporter().notes(cut.record, {}, {})[0]


def test_dense_experts_of_which_one_exceeds_float16_are_all_wider(rng, tmp_path):
    solved = solve_row("mixtral", rng)
    stack = "model.layers.0.block_sparse_moe.experts"
    for number in range(4):
        name = f"{stack}.{number}.w2.weight"
        solved.arrays[name] = solved.layers.pop(name).dequantized()
    solved.arrays[f"{stack}.3.w2.weight"][0, 0] = 1e6
    MlxExporter().write(solved, tmp_path)
    assert verify(tmp_path)["differences"] == []
    stored = load_file(tmp_path / "model.safetensors")
    down = stored["model.layers.0.block_sparse_moe.switch_mlp.down_proj.weight"]
    assert down.dtype == np.float32 and down[3, 0, 0] == 1e6


def test_a_changed_expert_is_found_by_its_number(rng, tmp_path):
    MlxExporter().write(solve_row("mixtral", rng), tmp_path)
    stack = "model.layers.1.block_sparse_moe.switch_mlp.up_proj"
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{stack}.weight"][2, 5, 1] ^= 1
    save_file(tensors, path, metadata={"format": "mlx"})
    found = verify(tmp_path)["differences"]
    assert any(f"tensor '{stack}.weight[2]': hash" in line for line in found)
    assert len(found) == 2  # that, and the file


@pytest.mark.parametrize(("hidden", "is_rounded"), [(128, True), (256, False), (2304, False)])
def test_a_rounded_scale_of_embeddings_is_said(hidden, is_rounded):
    kind, settings = ROWS["gemma3_text"]
    record = read_record(kind, _config(kind, settings, {"hidden_size": hidden}))
    notes = MlxExporter().notes(record, {}, {})
    assert any("rounds the scale" in note for note in notes) == is_rounded

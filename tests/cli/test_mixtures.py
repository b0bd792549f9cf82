"""Every kind of mixture of experts: forwards, halting passes and whole runs, also of cold
experts.
"""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from edgeq.checkpoint.reader import Checkpoint
from edgeq.commands.progress import Silent
from edgeq.registry import ACTIVATIONS, LOGITS, load
from edgeq.run.assembly import make_activations, make_job
from edgeq.run.pipeline import quantize
from edgeq.run.report import read_report
from edgeq.solving.report import Stage
from edgeq.sources import open_source
from edgeq.streams.blockwise import Flow

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = {"num_experts": 4, "num_experts_per_tok": 2}
QWEN = FEW | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16}
GROUPED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LINEAR = {
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {**LOCAL, "sliding_window": None},
    "qwen2_moe": QWEN,
    "qwen3_moe": {**QWEN, "head_dim": 16},
    "qwen3_next": {
        **QWEN,
        **LINEAR,
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "olmoe": FEW,
    "gpt_oss": {
        **LOCAL,
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "granitemoe": LOCAL,
    "deepseek_v2": {**LATENT, **GROUPED, "q_lora_rank": None},
    "deepseek_v3": {**LATENT, **GROUPED, "q_lora_rank": 32, "num_key_value_heads": 4},
    "glm4_moe": {**GROUPED, "head_dim": 16},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_layer_start_index": 1,
    },
}


@pytest.fixture(scope="module", params=KINDS)
def saved(request, save_model):
    """A checkpoint of each kind, its router large enough to send tokens to all experts."""
    return save_model(request.param, **KINDS[request.param])


def test_blocks_one_by_one_predict_what_transformers_predicts_and_passes_that_halt_end_there(
    rng, saved
):
    windows = rng.integers(0, 300, (3, 24))
    source = open_source(str(saved))
    model = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    blocks = next(each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    ends = []
    blocks[-1].register_forward_hook(lambda *args: ends.append(args[2]))
    with torch.no_grad():
        expected = model(torch.from_numpy(windows)).logits.numpy()
    found = np.stack(list(load(LOGITS["torch"], "a test")(source).logits(windows)))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    end = ends[0][0] if isinstance(ends[0], tuple) else ends[0]
    streams = load(ACTIVATIONS["torch"], "a test")(source, windows, flow=Flow("standing", 48))
    lending = 0
    for block in source.blocks():
        for site in streams.sites(block):
            lending += bool(site.lends)
            _, x_hat = next(iter(site.batches()))
            # rows of many windows too, and what all tokens pass beside experts
            assert len(site.tokens(0).numbers) == x_hat[..., 0].numel()
    assert lending % (1 + 4) == 0 < lending
    halted = np.concatenate([streams._quantized.read(batch).numpy() for batch in range(2)])
    np.testing.assert_allclose(halted, end.numpy(), rtol=1e-5, atol=1e-6)


def test_every_expert_is_solved_and_listed(edgeq, saved, quick, tmp_path):
    result = edgeq("quantize", saved, "-o", tmp_path / "out", *quick, "--bits", 3, "--json")
    assert result.status == 0, result.err
    checkpoint = Checkpoint(tmp_path / "out")
    experts = [each for each in checkpoint.record.decoder.linears() if each.expert is not None]
    assert experts
    assert all(checkpoint.grid(each.tensor) is not None for each in experts)
    layers = {layer.name: layer for layer in read_report(checkpoint).layers}
    assert {each.name for each in experts} <= {*layers}
    listed = json.loads(result.out)["experts"]
    blocks = {each.name.partition(".layers.")[2].split(".")[0] for each in experts}
    assert len(listed) == 4 * len(blocks)
    assert sum(each["tokens"] for each in listed) == 2 * 4 * 32 * len(blocks)
    for tensor in checkpoint.tensor_names():  # routers, corrections and gates stay as they are
        if tensor.endswith((".gate.weight", ".router.weight", "_bias", "_gate.weight")):
            np.testing.assert_array_equal(
                checkpoint.dense(tensor), open_source(str(saved)).read(tensor)
            )


@pytest.fixture(scope="module")
def cold(save_model):
    """A mixture whose router never chooses its last expert: of u, -u, v, -v two are above 0."""
    folder = save_model("qwen3_moe", **KINDS["qwen3_moe"] | {"num_experts": 5})
    tensors = load_file(folder / "model.safetensors")
    for block in range(2):
        u, v = np.random.default_rng(block).standard_normal((2, 64)).astype(np.float32)
        tensors[f"model.layers.{block}.mlp.gate.weight"] = np.stack([u, -u, v, -v, 0 * u])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_an_expert_that_sees_no_token_is_solved_on_what_others_see_and_named(
    edgeq, cold, quick, tmp_path
):
    result = edgeq("quantize", cold, "-o", tmp_path / "out", *quick, "--bits", 3, "--json")
    assert result.status == 0, result.err
    printed = json.loads(result.out)
    names = [f"model.layers.{block}.mlp.experts.4" for block in range(2)]
    assert [each for each in printed["experts"] if each["tokens"] == 0] == [
        {"name": name, "tokens": 0, "lent_share": 1.0} for name in names
    ]
    [note] = [note for note in printed["notes"] if "saw no token" in note]
    assert all(name in note for name in names)
    checkpoint, source = Checkpoint(tmp_path / "out"), open_source(str(cold))
    layers = {layer.name: layer for layer in read_report(checkpoint).layers}
    for name in names:
        for leaf in ("gate_proj", "up_proj", "down_proj"):
            layer, tensor = layers[f"{name}.{leaf}"], f"{name}.{leaf}.weight"
            assert (layer.tokens, layer.lent_share) == (0, 1)
            assert 0 < layer.final_loss < layer.losses[Stage.NEAREST]
            assert len(np.unique(checkpoint.quantized(tensor).codes)) == 8
            weight = source.read(tensor)
            error = checkpoint.read(tensor) - weight
            assert np.square(error).sum() < 0.1 * np.square(weight).sum()


def test_a_cold_expert_is_solved_whatever_the_recipe(edgeq, cold, quick, tmp_path):
    for place, options in enumerate(
        [
            ("--quality", "fast"),
            ("--propagation-strength", "auto"),
            ("--activation-order", "--outlier-columns", "0.05"),
            ("--max-ram", "20GB"),
        ]
    ):
        out = tmp_path / str(place)
        result = edgeq("quantize", cold, "-o", out, *quick, "--bits", 3, *options)
        assert result.status == 0, result.err
        experts = read_report(Checkpoint(out)).experts
        assert [each.tokens for each in experts[4::5]] == [0, 0]


class Stopping(Silent):
    """Stops a run when its first block is on disk."""

    def finished_block(self, index):
        raise KeyboardInterrupt


def codes_of(saved, text_file, destination, schedule, *, stop_first=False):
    """The files that a run writes, perhaps stopped behind the first block and continued."""
    source = open_source(str(saved))
    settings = {"samples": 6, "sequence_length": 32, "bits": 3}
    job = make_job(source, settings, backend="cpu", calibration=[str(text_file)])
    activations = partial(make_activations, "cpu", flow=Flow(schedule, 64))
    job = replace(job, make_activations=activations)
    if stop_first:
        with pytest.raises(KeyboardInterrupt):
            quantize(job, destination, Stopping())
    checkpoint = quantize(job, destination, Silent(), resume=stop_first)
    return [(checkpoint.path / file).read_bytes() for file in checkpoint.head["files"]]


def test_a_mixture_is_solved_alike_in_every_schedule_and_when_it_is_continued(
    cold, text_file, tmp_path
):
    expected = codes_of(cold, text_file, tmp_path / "whole", "standing")
    assert codes_of(cold, text_file, tmp_path / "small", "recomputing") == expected
    assert codes_of(cold, text_file, tmp_path / "a", "standing", stop_first=True) == expected
    assert codes_of(cold, text_file, tmp_path / "b", "recomputing", stop_first=True) == expected


def test_experts_in_codes_of_their_own_are_refused_as_quantized(refuse, save_model):
    folder = save_model("gpt_oss", **KINDS["gpt_oss"])
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "the model is quantized already" in refuse(folder)

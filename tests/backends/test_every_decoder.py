"""Passes of decoders without a family file: against transformers, and two streams at once.

A few rows run by default, one for each thing that sets a model apart; all with -m slow.
"""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from edgeq.errors import BadInput
from edgeq.sources import open_source
from edgeq.streams.blockwise import Flow
from edgeq.talking.kept import KeptText
from edgeq_backends.torch.activations import TorchActivations, TorchLogits
from edgeq_backends.torch.speaking import TorchSpeaker
from edgeq_backends.torch.writer import TorchWriter

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}
KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
SMALL_ALTUP = {
    "head_dim": 32,
    "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 96,
    "laurel_rank": 32,
}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
NO_LAYERS = {key: SIZES[key] for key in SIZES if key != "num_hidden_layers"}
QUICK = {
    "gpt2": GPT2,  # weights with inputs first, a table of positions
    "falcon": {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 1},  # blocks give tuples
    "opt": {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 32},  # a projection before the blocks
    "gpt_neox": {key: SIZES[key] for key in SIZES if key != "num_key_value_heads"},  # other names
    "apertus": SIZES,  # numbers without axes
    "gemma3_text": {**SIZES, **KINDS, "head_dim": 32},  # rotary settings by kind of layer
    "gemma3n_text": {  # keys and values of blocks go to later ones
        **SIZES,
        **SMALL_ALTUP,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 16,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "qwen3_5_text": {**SIZES, **LINEAR, "head_dim": 32},  # convolutions and states
}
SLOW = {
    "arcee": SIZES,
    "bamba": {**SIZES, **MAMBA, "attn_layer_indices": [1]},
    "bitnet": SIZES,
    "bloom": {"vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 2},
    "cohere": {**SIZES, "pad_token_id": 2},
    "cohere2": {**SIZES, **KINDS},
    "ernie4_5": {**SIZES, "head_dim": 32},
    "exaone4": {**SIZES, **KINDS},
    "falcon_h1": {**SIZES, **MAMBA, "mamba_d_ssm": 128},
    "gemma": {**SIZES, "head_dim": 32},
    "gemma2": {**SIZES, "head_dim": 32, "sliding_window": 16},
    "gemma4_text": {
        **SIZES,
        **KINDS,
        "head_dim": 32,
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 96,
    },
    "glm": {**SIZES, "head_dim": 32, "pad_token_id": 2},
    "glm4": {**SIZES, "head_dim": 32, "pad_token_id": 2},
    "gptj": {**GPT2, "rotary_dim": 16},
    "granite": SIZES,
    "helium": {**SIZES, "head_dim": 32},
    "hunyuan_v1_dense": {**SIZES, "head_dim": 32},
    "lfm2": {**SIZES, "block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"]},
    "mamba": {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16},
    "mamba2": {**SIZES, "num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 1},
    "minicpm3": {**SIZES, **LATENT},
    "ministral": {**SIZES, **KINDS, "head_dim": 32},
    "nanochat": SIZES,
    "nemotron": SIZES,
    "nemotron_h": {
        **NO_LAYERS,
        "layers_block_type": ["mamba", "attention", "mlp"],
        "head_dim": 32,
        "ssm_state_size": 16,
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "n_groups": 1,
    },
    "olmo": SIZES,
    "olmo2": SIZES,
    "olmo3": {**SIZES, **KINDS},
    "phi": SIZES,
    "phi3": {**SIZES, "pad_token_id": 2},
    "seed_oss": {**SIZES, "head_dim": 32},
    "smollm3": {**SIZES, "no_rope_layers": [1, 0], "pad_token_id": 2},
    "stablelm": SIZES,
    "starcoder2": {**SIZES, "sliding_window": None},
}
ROWS = [*QUICK, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]


def saved(kind, folder):
    """Save a random model whose norms and biases show; give transformers' own reading of it."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(QUICK | SLOW)[kind], bos_token_id=0, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and parameter.ndim == 1 and "dt_bias" not in name:
                parameter.normal_(0, 0.3)
            elif "norm" in name:
                parameter.add_(0.3 * torch.rand_like(parameter))
            elif parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def windows(count=2, length=24):
    return np.random.default_rng(0).integers(3, 90, (count, length))


@torch.no_grad()
def own_logits(model, ids):
    return model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()


@pytest.mark.parametrize("kind", ROWS)
def test_predictions_are_those_of_transformers(kind, tmp_path):
    expected = own_logits(saved(kind, tmp_path), windows())
    found = np.stack(list(TorchLogits(open_source(str(tmp_path))).logits(windows())))
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("kind", ROWS)
def test_texts_that_grow_are_predicted_as_whole_ones(kind, tmp_path):
    """A prompt, single tokens, several at once, and another text with the same beginning."""
    model, ids = saved(kind, tmp_path), windows(1, 24)[0].tolist()
    kept = KeptText(TorchSpeaker(open_source(str(tmp_path))), context=None)
    texts = [ids[:12], ids[:13], ids[:14], ids[:20], [*ids[:7], *ids[20:]], [*ids[:7], *ids[19:]]]
    for text in texts:
        expected = own_logits(model, np.array([text]))[0, -1]
        found = kept.predict(text, room=32)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_text_that_a_model_writes_itself_knows_its_positions(tmp_path):
    """The first block of this model keeps no keys that would count them."""
    model = saved("bamba", tmp_path)
    allowed = np.arange(3, 90)
    first = np.arange(5, 25)
    written = TorchWriter(open_source(str(tmp_path)), allowed, 0).continue_text(first)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        texts = torch.from_numpy(first[:, None])
        for tokens, _ in zip(written, range(12), strict=False):
            logits = torch.from_numpy(own_logits(model, texts.numpy()))[:, -1, 3:90]
            drawn = torch.multinomial(torch.softmax(logits, dim=1), 1) + 3
            assert tokens.tolist() == drawn[:, 0].tolist()
            texts = torch.cat([texts, drawn], dim=1)


def run_streams(source, flow, weights):
    """Run both streams through all blocks; weights gives what a layer is replaced by."""
    streams = TorchActivations(source, windows(), flow=flow)
    passed = []
    for block in source.blocks():
        linears = {linear.name: linear for linear in block.linears}
        for site in streams.sites(block):
            for _ in site.batches():
                pass
            for layer in site.layers():
                site.replace(layer, weights(linears[layer]))
                passed.append(layer)
    return streams, passed


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("schedule", ["standing", "recomputing"])
def test_streams_pass_every_layer_and_do_not_disturb_each_other(kind, schedule, tmp_path):
    """Replaced by nothing, the quantized stream is where a model of such weights is."""
    model = saved(kind, tmp_path)
    source = open_source(str(tmp_path))
    streams, passed = run_streams(
        source, Flow(schedule, 24), lambda linear: np.zeros(linear.shape, np.float32)
    )
    assert passed == [linear.name for linear in source.record.decoder.linears()]
    last = states_behind(model)
    own_logits(model, windows())
    full = torch.cat([streams._full.read(batch) for batch in range(2)], dim=-3)
    torch.testing.assert_close(full, last.pop(), rtol=1e-5, atol=1e-5)
    zeroed = model.state_dict()
    for linear in source.record.decoder.linears():
        zeroed[module_name(kind, linear.tensor)].zero_()
    own_logits(model, windows())
    quantized = torch.cat([streams._quantized.read(batch) for batch in range(2)], dim=-3)
    torch.testing.assert_close(quantized, last.pop(), rtol=1e-5, atol=1e-5)


def module_name(kind, tensor):
    """The name of a tensor in the module; files on the hub call it otherwise."""
    return tensor.replace("backbone.", "model.", 1) if kind == "nemotron_h" else tensor


def states_behind(model):
    """A list that gets what the last block gives, pass by pass."""
    lists = [each for each in model.modules() if isinstance(each, torch.nn.ModuleList)]
    blocks = max(lists, key=lambda each: sum(p.numel() for p in each.parameters()))
    found = []

    def note(block, args, output):
        found.append(output[0] if isinstance(output, tuple) else output)

    blocks[-1].register_forward_hook(note)
    return found


def test_keys_and_values_that_blocks_share_are_not_lost_silently(tmp_path):
    saved("gemma3n_text", tmp_path / "model")
    source = open_source(str(tmp_path / "model"))
    flow = Flow("recomputing", 24, states_folder=tmp_path)
    with pytest.raises(BadInput, match=r"hand shared_kv_states to later blocks.*--max-ram"):
        run_streams(source, flow, lambda linear: np.zeros(linear.shape, np.float32))

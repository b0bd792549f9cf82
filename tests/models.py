"""Models for tests: a random tiny Llama, trained weights from the glassllm package, and a
ModelSource in memory.
"""

import json
from importlib.resources import files

import numpy as np
import torch
from tiny_models import SMALL_LLAMA, tokenizer_files
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM

from edgeq.architectures.blocks import find_blocks
from edgeq.architectures.record import Evidence, read_record
from edgeq.calibration.reading import read_text

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "max_position_embeddings": 128,
}


class MemorySource:
    """The tensors of a live transformers model as a ModelSource; `changed` replaces some of
    them.
    """

    def __init__(self, model, changed=None, companions=None):
        self.record = read_record("in memory", model.config.to_dict(), Evidence(companions or {}))
        self._tensors = {
            name: tensor.numpy().copy() for name, tensor in model.state_dict().items()
        } | (changed or {})
        self._companions = companions or {}

    def tensor_names(self):
        return list(self._tensors)

    def shape(self, tensor_name):
        return self._tensors[tensor_name].shape

    def read(self, tensor_name):
        return self._tensors[tensor_name]

    def blocks(self):
        return find_blocks(self.record.decoder, {name: self.shape(name) for name in self._tensors})

    def companions(self):
        return self._companions

    def fingerprint(self):
        return "in memory"


def tiny_llama(seed=0, **changes):
    """A random Llama of two blocks with two query heads per key head."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(TINY | changes))).eval()


def with_weights(model, weights):
    """A copy of a model with some tensors replaced, as a plain transformers model."""
    copy = LlamaForCausalLM(model.config).eval()
    copy.load_state_dict(
        model.state_dict() | {name: torch.from_numpy(array) for name, array in weights.items()}
    )
    return copy


def glass_weights():
    """The weights and settings of glassllm's English model."""
    stored = np.load(files("glassllm") / "weights" / "en.npz")
    return stored, json.loads(str(stored["__config__"]))


def glass_llama():
    """glassllm's trained weights in a transformers Llama: 4 blocks, hidden 128, intermediate
    341.
    """
    stored, c = glass_weights()
    config = LlamaConfig(
        vocab_size=c["vocab_size"],
        hidden_size=c["d_model"],
        intermediate_size=8 * c["d_model"] // 3,
        num_hidden_layers=c["n_layers"],
        num_attention_heads=c["n_heads"],
        num_key_value_heads=c["n_kv_heads"],
        max_position_embeddings=c["max_len"],
        rms_norm_eps=c["eps"],
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": c["rope_base"]},
    )
    weights = {
        "model.embed_tokens.weight": "E",
        "lm_head.weight": "E",
        "model.norm.weight": "norm_f.gamma",
    }
    state = {
        name: torch.from_numpy(stored[key].astype(np.float32)) for name, key in weights.items()
    }
    for block in range(c["n_layers"]):
        state |= _glass_block(stored, c, block)
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


GLASS_LINEARS = {
    "W_Q": "self_attn.q_proj",
    "W_K": "self_attn.k_proj",
    "W_V": "self_attn.v_proj",
    "W_O": "self_attn.o_proj",
    "W1": "mlp.gate_proj",
    "W3": "mlp.up_proj",
    "W2": "mlp.down_proj",
}


def _glass_block(stored, config, block):
    prefix, heads = (
        f"model.layers.{block}.",
        {"W_Q": config["n_heads"], "W_K": config["n_kv_heads"]},
    )
    state = {
        f"{prefix}input_layernorm.weight": stored[f"blocks.{block}.norm1.gamma"],
        f"{prefix}post_attention_layernorm.weight": stored[f"blocks.{block}.norm2.gamma"],
    }
    for key, name in GLASS_LINEARS.items():
        room = "attn" if key.startswith("W_") else "ffn"
        weight = stored[f"blocks.{block}.{room}.{key}"].T
        if (
            key in heads
        ):  # rotary pairs lie next to each other there, half a head apart in transformers
            weight = (
                weight.reshape(heads[key], -1, 2, weight.shape[1])
                .swapaxes(1, 2)
                .reshape(weight.shape)
            )
        state[f"{prefix}{name}.weight"] = weight
    return {
        name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        for name, array in state.items()
    }


def glass_windows(windows, length):
    """The start of the evaluation text in glassllm's own tokens. Shapes: (windows, length)."""
    from glassllm.tokenizer import Tokenizer  # noqa: PLC0415

    saved = json.loads((files("glassllm") / "weights" / "en.tokenizer.json").read_text("utf-8"))
    tokenizer = Tokenizer(saved["alphabet"], [tuple(pair) for pair in saved["merges"]])
    text = read_text(None, default="evaluation.txt")[: 8 * windows * length]
    return np.array(tokenizer.encode(text)[: windows * length], dtype=np.int64).reshape(
        windows, length
    )


def glass_tokenizer():
    """glassllm's tokenizer in the library that edgeq reads tokenizer.json with."""
    saved = json.loads((files("glassllm") / "weights" / "en.tokenizer.json").read_text("utf-8"))
    tokens = [
        "<pad>",
        "<unk>",
        "<bos>",
        "<eos>",
        *saved["alphabet"],
        *(a + b for a, b in saved["merges"]),
    ]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in saved["merges"]]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|▁*[^▁\n]+|▁+"), "isolated")
    return tokenizer


def linear_inputs(model, windows):
    """What every linear layer of the blocks gets in a plain forward. Shapes: name -> (tokens,
    in).
    """
    seen, hooks = {}, []
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):

            def note(_, args, name=f"model.layers.{name}"):
                seen[name] = args[0].reshape(-1, args[0].shape[-1]).numpy().copy()

            hooks.append(module.register_forward_pre_hook(note))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(windows), use_cache=False)
    for hook in hooks:
        hook.remove()
    return seen


def save_glass(folder):
    """glassllm as a directory of safetensors with its tokenizer; gives the directory."""
    glass_llama().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(glass_tokenizer().to_str(), encoding="utf-8")
    return folder


def save_small_llama(folder, *, seed=0, **tokenizer):
    """Save a small random Llama of peaked predictions, with a tokenizer that every format holds."""
    torch.manual_seed(seed)
    sizes = {**SMALL_LLAMA, "max_position_embeddings": 128, "initializer_range": 0.2}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    for name, data in tokenizer_files(**tokenizer).items():
        (folder / name).write_bytes(data)
    return folder

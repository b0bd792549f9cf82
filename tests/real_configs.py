"""Configs as well-known families ship them, with sizes and token ids made small.

Keys, their order of age, nulls and gaps are those of the files on the hub.
"""

import json

from tiny_models import tokenizer_files
from tokenizers import AddedToken, Tokenizer

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 320,
}
LLAMA_3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
END, TURN, MESSAGE = 1, 301, 302  # of the small tokenizer, with <|im_end|> and <|stop_message|>

CONFIGS = {
    "Llama-2-7b": {
        "model_type": "llama",
        "bos_token_id": 0,
        "eos_token_id": END,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
    },
    "TinyLlama-1.1B-Chat-v1.0": {
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": END,
        "max_position_embeddings": 2048,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "Meta-Llama-3-8B-Instruct": {
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": END,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": [END, MESSAGE, TURN],
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**LLAMA_3, "factor": 8.0},
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "Llama-3.2-1B": {
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": END,
        "head_dim": 16,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {**LLAMA_3, "factor": 32.0},
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "SmolLM2-135M-Instruct": {
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": TURN,
        "is_llama_config": True,
        "max_position_embeddings": 8192,
        "mlp_bias": False,
        "num_key_value_heads": 2,
        "pad_token_id": TURN,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    },
    "deepseek-coder-1.3b-instruct": {
        "model_type": "llama",
        "bos_token_id": 0,
        "eos_token_id": TURN,
        "max_position_embeddings": 16384,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"factor": 4.0, "type": "linear"},
        "rope_theta": 100000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "Mistral-7B-v0.1": {
        "model_type": "mistral",
        "bos_token_id": 0,
        "eos_token_id": END,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "Mistral-7B-Instruct-v0.3": {
        "model_type": "mistral",
        "bos_token_id": 0,
        "eos_token_id": END,
        "head_dim": None,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    },
    "Qwen2-0.5B-Instruct": {
        "model_type": "qwen2",
        "bos_token_id": END,
        "eos_token_id": TURN,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "attention_bias": False,
        "bos_token_id": END,
        "eos_token_id": TURN,
        "head_dim": 32,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
    },
    "Qwen3-4B saved by transformers 5": {
        "model_type": "qwen3",
        "attention_bias": False,
        "bos_token_id": None,
        "dtype": "float16",
        "eos_token_id": TURN,
        "head_dim": 32,
        "layer_types": ["full_attention", "full_attention"],
        "max_position_embeddings": 262144,
        "max_window_layers": 36,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 5000000, "rope_type": "default"},
        "sliding_window": None,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    },
}
GENERATION = {
    "Meta-Llama-3-8B-Instruct": {"bos_token_id": 0, "eos_token_id": [END, TURN]},
    "Llama-3.1-8B-Instruct": {"bos_token_id": 0, "eos_token_id": [END, MESSAGE, TURN]},
    "Qwen2-0.5B-Instruct": {"bos_token_id": END, "pad_token_id": END, "eos_token_id": [TURN, END]},
    "Qwen3-0.6B": {"bos_token_id": END, "pad_token_id": END, "eos_token_id": [TURN, END]},
}


def files_of(name):
    """The tokenizer files and generation config of a family."""
    files = tokenizer_files(bos_token=None, eos_token=None, pad_token=None)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    names = ("<|im_end|>", "<|stop_message|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    assert [tokenizer.token_to_id(name) for name in names] == [TURN, MESSAGE]
    files["tokenizer.json"] = tokenizer.to_str().encode()
    if name in GENERATION:
        files["generation_config.json"] = json.dumps(GENERATION[name]).encode()
    return files

"""Tiny checkpoints of a kind of model, with random weights by which a forgotten part shows.

A norm, bias, window or scale that a runtime leaves out changes the logits of such a model by far
more than rounding does.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = "the mice run to the 12 cafes, it's 345 of them and the people of the world"
SPECIAL = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
EMBEDDINGS = re.compile(r"embed|wte|lm_head")
SCORES = re.compile(r"q_proj|k_proj|query_key|c_attn|qkv")  # attention must look somewhere


def make_checkpoint(kind: str, settings: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint of a kind of model, in bfloat16, with a tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).float().eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            fill(kind, path, parameter)
        model.tie_weights()
        logits = model(input_ids=torch.arange(3, 100)[None], use_cache=False).logits
    if not torch.isfinite(logits).all():
        raise ValueError(f"a random {kind} predicts what is no number")
    model.bfloat16().save_pretrained(folder)
    write_tokenizer(folder)


def fill(kind: str, path: str, parameter: torch.Tensor) -> None:
    """Draw the values of one parameter; what a model sets by a rule of its own is left as it is."""
    leaf = path.rsplit(".", 1)[-1]
    is_norm = "norm" in path or re.search(r"ln_\w+\.weight$", path)
    if EMBEDDINGS.search(path):
        # Gemma multiplies by the root of the hidden size
        parameter.normal_(0, 0.12 if kind.startswith("gemma") else 0.3)
    elif is_norm and leaf == "weight":
        around = torch.rand_like(parameter) - 0.5
        parameter.mul_(1 + 0.4 * around).add_(0.2 * (torch.rand_like(parameter) - 0.5))
    elif leaf.endswith("bias") and parameter.ndim == 1 and leaf != "dt_bias":
        parameter.normal_(0, 0.3)
    elif parameter.ndim == 2 and leaf == "weight":
        gain = 1.5 if SCORES.search(path) else 1.0
        parameter.normal_(0, gain / parameter.shape[1] ** 0.5)
    elif parameter.ndim == 3 and "conv" not in path:
        parameter.normal_(0, 1 / min(parameter.shape[1:]) ** 0.5)


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer that splits as Qwen 2 does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    settings = {**SPECIAL, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")

"""A tiny model that chats, its exports in every runtime, and an independent greedy loop."""

import json

import gguf
import numpy as np
import torch
from command_line import finished
from tiny_models import SMALL_LLAMA, TEXT, tokenizer_files
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from edgeq.checkpoint.reader import Checkpoint

TEMPLATE = (
    "{% if messages[0].role == 'system' and '!' in messages[0].content %}"
    "{{ raise_exception('no shouting') }}{% endif %}"
    "{% for message in messages %}<|bos|>{{ message.role }}\n"
    "{{ message.content | trim }}<tool>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)
CONTEXT = 192
PLAINLY = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0"]
QUICK = ["--samples", "2", "--sequence-length", "32", "--backend", "cpu", *PLAINLY]
FORMATS = ("gguf", "mlx", "onnx", "compressed-tensors")


def save_chatting(folder, *, template=TEMPLATE, context=CONTEXT, seed=0):
    """Save a random Llama of peaked predictions, with a tokenizer and a chat template."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        **SMALL_LLAMA,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name, data in tokenizer_files().items():
        (folder / name).write_bytes(data)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def quantized(model, folder, text, formats=FORMATS):
    """Quantize a model to 4 bits by plain rounding, and export it."""
    text.write_text(TEXT * 50, encoding="utf-8")
    wanted = [word for name in formats for word in ("--export", name)]
    grids = ["--bits", "4", "--group-size", "32", "--symmetric", "--embedding-bits", "8"]
    grids += ["--accuracy-level", "0"] if "onnx" in formats else []
    finished("quantize", model, "--output", folder, *QUICK, "--calibration", text, *grids, *wanted)
    return folder


def target_of(folder, name):
    """What a user gives to talk to an export, or to the checkpoint."""
    if name == "checkpoint":
        return str(folder)
    return str(next((folder / name).glob("*.gguf"))) if name == "gguf" else str(folder / name)


def dequantized(model, checkpoint):
    """The model in transformers, with the weights that a checkpoint stands for."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    solved = Checkpoint(checkpoint)
    weights = {name: solved.read(name).astype(np.float32) for name in solved.tensor_names()}
    loaded.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return loaded


def greedy(model, ids, count):
    """The likeliest tokens one after the other, each from all logits anew."""
    ids = list(ids)
    with torch.no_grad():
        for _ in range(count):
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()))
    return ids[-count:]


def set_ends(folder, name, ends):
    """Have an export or checkpoint state other tokens that end a text."""
    if name == "gguf":
        reader = gguf.GGUFReader(target_of(folder, name), "r+")
        (end,) = ends
        reader.fields["tokenizer.ggml.eos_token_id"].parts[-1][0] = end
        return
    place = folder if name == "checkpoint" else folder / name
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": list(ends)}))

"""A tiny mixture of experts for tests, as a model and as a ModelSource of what files hold of it."""

import models
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

HIDDEN, INNER, EXPERTS = 32, 24, 4
CONFIG = {
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "moe_intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "vocab_size": 40,
    "max_position_embeddings": 128,
}
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
PLACES = {
    "gate_proj": (GATE_UP, slice(INNER)),
    "up_proj": (GATE_UP, slice(INNER, None)),
    "down_proj": (DOWN, slice(None)),
}


def tiny_mixture(seed=0):
    """A random qwen3_moe of two blocks, with weights large enough that routers are decided."""
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**CONFIG)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def weight_in(state, layer):
    """The weight of a linear layer among the tensors of the model, which has experts in stacks."""
    block, is_expert, of_expert = layer.partition("mlp.experts.")
    if not is_expert:
        return state[f"{layer}.weight"]
    expert, leaf = of_expert.split(".")
    stack, rows = PLACES[leaf]
    return state[f"{block}{stack}"][int(expert)][rows]


class MixtureSource(models.MemorySource):
    """The tensors of a live qwen3_moe, those of experts one by one as checkpoints have them."""

    def __init__(self, model):
        super().__init__(model)
        for block in range(CONFIG["num_hidden_layers"]):
            prefix = f"model.layers.{block}."
            for expert in range(EXPERTS):
                for leaf in PLACES:
                    layer = f"{prefix}mlp.experts.{expert}.{leaf}"
                    self._tensors[f"{layer}.weight"] = weight_in(self._tensors, layer).copy()
            for stack in (GATE_UP, DOWN):
                del self._tensors[prefix + stack]

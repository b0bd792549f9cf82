"""A tiny mixture of experts for tests, as a model and as a ModelSource of its stacked tensors."""

from dataclasses import replace

import models
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from edgeq.architectures.record import read_record
from edgeq.decoder import Layer, Norm
from edgeq.types import LinearSpec

HIDDEN, INNER, EXPERTS, HEAD = 32, 24, 4, 8
CONFIG = {
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "moe_intermediate_size": INNER,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "vocab_size": 40,
    "max_position_embeddings": 128,
}
GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def tiny_mixture(seed=0):
    """A random qwen3_moe of two blocks, with weights large enough that routers are decided."""
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**CONFIG)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return model


def plain_layer(name, out_features, in_features):
    return LinearSpec(name, f"{name}.weight", (out_features, in_features))


def expert_sites():
    """The sites of all experts, whose tensors are stacks."""
    for expert in range(EXPERTS):
        yield tuple(
            LinearSpec(
                f"mlp.experts.{expert}.{name}",
                GATE_UP,
                (INNER, HIDDEN),
                rows=rows,
                expert=expert,
                stored=(EXPERTS, 2 * INNER, HIDDEN),
            )
            for name, rows in (("gate_proj", (0, INNER)), ("up_proj", (INNER, 2 * INNER)))
        )
        yield (
            LinearSpec(
                f"mlp.experts.{expert}.down_proj",
                DOWN,
                (HIDDEN, INNER),
                expert=expert,
                stored=(EXPERTS, HIDDEN, INNER),
            ),
        )


class MixtureSource(models.MemorySource):
    """The tensors of a live qwen3_moe, under the names that they have in transformers."""

    def __init__(self, model):
        config = model.config.to_dict()
        base = read_record("in memory", {**config, "model_type": "qwen3"})
        sites = (
            tuple(
                plain_layer(f"self_attn.{name}_proj", heads * HEAD, HIDDEN)
                for name, heads in (("q", 4), ("k", 2), ("v", 2))
            ),
            (plain_layer("self_attn.o_proj", HIDDEN, 4 * HEAD),),
            *expert_sites(),
        )
        norms = [Norm(f"{name}_layernorm.weight", HIDDEN) for name in ("input", "post_attention")]
        norms += [Norm(f"self_attn.{name}_norm.weight", HEAD) for name in "qk"]
        first = base.decoder.layers[0]
        layer = Layer(
            first.attention, first.mlp, sites, tuple(norms), {"mlp.gate.weight": (EXPERTS, HIDDEN)}
        )
        decoder = replace(base.decoder, model_type="qwen3_moe", layers=(layer, layer))
        self.record = replace(base, decoder=decoder, stated=config)
        self._tensors = {name: each.numpy().copy() for name, each in model.state_dict().items()}
        self._companions = {}

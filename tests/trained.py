"""Problems from trained models: weights, statistics of real text, and a drift from rounding what
came before.
"""

import functools

import models
import numpy as np
import plain

from edgeq.calibration.reading import read_text
from edgeq.calibration.windows import sample_windows, tokenize
from edgeq.registry import load_backend
from edgeq.solving.statistics import accumulate
from edgeq.sources import open_source
from edgeq.sources.reading import read_weight
from edgeq_backends.torch.activations import TorchActivations

FIRST_SITE = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
DEMO_LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj")


@functools.cache
def glass_layers():
    """Weight, H and D of every linear layer of glassllm, the drift that of the same model rounded
    to 4 bits.
    """
    model, windows = models.glass_llama(), models.glass_windows(16, 128)
    weights = {
        name: t.numpy().astype(np.float64)
        for name, t in model.state_dict().items()
        if "_proj" in name
    }
    rounded = {name: plainly_rounded(W, 32) for name, W in weights.items()}
    full = models.linear_inputs(model, windows)
    quantized = models.linear_inputs(models.with_weights(model, rounded), windows)
    layers = {}
    for layer, X in full.items():
        H, D = map(
            in_float32, plain.moments(X.astype(np.float64), quantized[layer].astype(np.float64))
        )
        layers[layer] = (weights[f"{layer}.weight"], H, None if layer in FIRST_SITE else D)
    return layers


@functools.cache
def glass_split():
    """Weight, H of fitted tokens and H of others, of every linear layer of glassllm."""
    model, windows = models.glass_llama(), models.glass_windows(24, 128)
    weights = {
        name: t.numpy().astype(np.float64)
        for name, t in model.state_dict().items()
        if "_proj" in name
    }
    halves = [models.linear_inputs(model, part) for part in (windows[:16], windows[16:])]
    return [
        (
            weights[f"{name}.weight"],
            *(plain.moments(half[name].astype(np.float64), half[name])[0] for half in halves),
        )
        for name in halves[0]
    ]


@functools.cache
def demo_layers():
    """The same of four layers of the demo's second block, of four shapes; 2048 tokens, more than
    any layer is wide.
    """
    source, backend = open_source("demo"), load_backend("cpu")
    windows = sample_windows(
        tokenize(source, read_text(None)), samples=16, sequence_length=128, seed=0
    )
    activations, layers = TorchActivations(source, windows), {}
    for block in source.blocks()[:2]:
        for site in activations.sites(block):
            statistics = accumulate(site, backend, drift=True)
            for linear in site.layers():
                W = read_weight(source, f"{linear}.weight").astype(np.float64)
                site.replace(linear, plainly_rounded(W, 64))
                if linear.removeprefix("model.layers.1.") in DEMO_LAYERS:
                    layers[linear] = (
                        W,
                        in_float32(statistics.H.numpy()),
                        in_float32(statistics.D.numpy()),
                    )
    return layers


def in_float32(array):
    """Numbers that every backend holds exactly."""
    return array.astype(np.float32).astype(np.float64)


def plainly_rounded(W, group_size):
    """The nearest 4-bit values on min-max scales."""
    scales, offsets = plain.min_max(W, group_size, 4, "symmetric")
    return (scales * plain.nearest(W, scales, offsets, 15) + offsets).astype(np.float32)

"""Reports and measurements that are made up, with texts that a test chooses."""

from edgeq.run.report import RunReport
from edgeq.solving.report import LayerReport, Stage

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.down_proj")
HOSTILE = (
    "</script><script>window.planted=1</script><img src=x onerror=window.planted=2>&\"'`{{7*7}}"
)
"""What must come out as the text that it is, wherever it stands."""


def layer(name, *losses, **facts):
    """The report of a layer with losses after rounding, solving and refitting."""
    stages = zip((Stage.NEAREST, Stage.SOLVED, Stage.REFITTED), losses, strict=False)
    return LayerReport(name, (32, 32), 4, 32, dict(stages), **facts)


def run_report(**changes):
    """The report of a run whose errors fall from 0.08 to a half and a quarter of it."""
    layers = [
        layer(f"model.layers.{block}.{kind}", error, error / 2, error / 4, propagation_strength=0.5)
        for block in range(2)
        for number, kind in enumerate(KINDS)
        for error in [0.08 / (1 + block + number)]
    ]
    report = RunReport({"linear layers": 4.5, "model": 4.625}, 4096, layers)
    for name, value in changes.items():
        setattr(report, name, value)
    return report


def quality(text="plain", **changes):
    """A whole measurement, in which all text is the one that is given."""
    found = {
        "target": text,
        "runtime": "torch",
        "reference": "transformers 5",
        "tokens": 8192,
        "perplexity": 31.5,
        "reference_perplexity": 30.25,
        "kl": 0.0865,
        "top1_agreement": 0.875,
        "intervals": {"kl": [0.08, 0.09], "top1_agreement": [0.86, 0.89]},
        "windows": [
            {"text": text, "tokens": 512, "kl": 0.1 / n, "loss": 3.0, "agreed": 400}
            for n in (1, 2, 3)
        ],
        "by_position": [{"from": 1, "to": 64, "kl": 0.1}, {"from": 65, "to": 512, "kl": 0.07}],
        "worst_tokens": [
            {
                "before": f"{text}\n\tonce",
                "token": text,
                "kl": 3.5,
                "original_says": text,
                "target_says": text,
            }
        ],
        "texts": [{"name": text, "tokens": 4096, "kl": 0.06, "perplexity": 12.5}],
        "tasks": [{"name": text, "accuracy": 0.5, "interval": [0.4, 0.6], "items": 100}],
        "bytes": 98_000_000,
        "bits_per_weight": 4.625,
    }
    return found | changes


def budget(label="Q4_K"):
    """How a budget was spent, as report.json states it."""
    return {
        "asked": {"bits_per_weight": 4.5},
        "format": "gguf",
        "limit": 2_000_000,
        "bytes": 1_900_000,
        "beside": {},
        "predicted_kl": 0.02,
        "slack": 0.0,
        "outer": {},
        "overrides": [],
        "spent": {label: [1_000_000, 0.015], "embedding": [900_000, 0.005]},
        "curve": [{"bytes": 10**6 * n, "predicted_kl": 0.1 / n**2} for n in (1, 2, 3)],
        "uniform": [
            {"type": label, "bytes": 1_800_000, "predicted_kl": 0.04, "best_of_size": 0.03}
        ],
        "notes": [],
        "measured": {"kl": 0.025, "runtime": "llama.cpp", "tokens": 4096},
    }

"""Lay out how far targets predict from their original, window by window, with 95 % intervals.

Windows are the sample: all targets read the same ones, so differences between targets are paired.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from edgeq.measuring.intervals import Interval, Values, mean_interval, share_interval
from edgeq.measuring.quality import LARGEST_LOSS, Compared, Meter, WindowQuality
from edgeq.measuring.texts import Windows
from edgeq.types import NumpyArray

FIRST_BIN = 8  # tokens; each further bin of positions reaches twice as far
WORST = 12  # tokens that are shown
CONTEXT = 24  # tokens before a worst one
SMALLEST_SHOWN = 1e-6  # nats: less is rounding, and no token of its own
ONLY_COMPARED = ("kl", "perplexity_ratio", "top1_agreement")

Measured = Sequence[WindowQuality]


def quality_of(measured: Measured, windows: Windows, tokenizer: Tokenizer) -> dict[str, Any]:
    """Describe the quality of one target as plain data.

    Shapes: one measurement for each window.
    Units: kl and losses in nats per token; positions count from 1.
    """
    found = summary(measured, windows.texts)
    names = list(dict.fromkeys(windows.texts))
    return {
        **found,
        "windows": [
            window_row(text, each) for text, each in zip(windows.texts, measured, strict=True)
        ],
        "by_position": by_position(measured),
        "worst_tokens": worst_tokens(measured, windows.ids, tokenizer),
        "texts": [] if len(names) < 2 else [text_row(name, measured, windows) for name in names],
    }


def summary(measured: Measured, texts: Sequence[str]) -> dict[str, Any]:
    """Average over windows, with an interval for each average."""
    meter = Meter()
    for each in measured:
        meter.add_window(each)
    found = asdict(meter.quality())
    losses = np.array([each.losses.mean() for each in measured])
    intervals = {"perplexity": exponential(mean_interval(losses, texts))}
    intervals |= dict.fromkeys(ONLY_COMPARED)
    found["perplexity_ratio"] = None
    compared = compared_windows(measured)
    if compared:
        ratios = losses - np.array([each.losses.mean() for each in compared])
        found["perplexity_ratio"] = exponent(float(ratios.mean()))
        intervals |= {
            "kl": positive(mean_interval(means_of(compared), texts)),
            "perplexity_ratio": exponential(mean_interval(ratios, texts)),
            "top1_agreement": share_interval(agreements(compared), texts, found["tokens"]),
        }
    return {**found, "intervals": intervals}


def means_of(compared: Sequence[Compared]) -> Values:
    """Average the divergence of each window.

    Shapes: (windows,).
    """
    return np.array([each.kl.mean() for each in compared])


def agreements(compared: Sequence[Compared]) -> Values:
    """Find the share of tokens of each window at which both models predict the same first.

    Shapes: (windows,).
    """
    return np.array([each.agrees.mean() for each in compared])


def positive(interval: Interval) -> Interval:
    """Cut an interval off at zero, which a divergence is never below."""
    return None if interval is None else [max(0.0, each) for each in interval]


def exponential(interval: Interval) -> Interval:
    """Turn an interval of losses into one of perplexities, as far as numbers reach."""
    return None if interval is None else [exponent(each) for each in interval]


def exponent(loss: float) -> float:
    """Turn a loss into a perplexity, at most the largest one."""
    return math.exp(min(loss, LARGEST_LOSS))


def window_row(text: str, window: WindowQuality) -> dict[str, Any]:
    """Describe one window: means, and at how many tokens both models agree."""
    row = {"text": text, "tokens": len(window.says), "loss": float(window.losses.mean())}
    if window.compared is None:
        return row | dict.fromkeys(("kl", "reference_loss", "agreed"))
    return row | {
        "kl": float(window.compared.kl.mean()),
        "reference_loss": float(window.compared.losses.mean()),
        "agreed": int(window.compared.agrees.sum()),
    }


def text_row(name: str, measured: Measured, windows: Windows) -> dict[str, Any]:
    """Describe the windows of one text."""
    own = [each for each, text in zip(measured, windows.texts, strict=True) if text == name]
    return {"name": name, **summary(own, [name] * len(own))}


def by_position(measured: Measured) -> list[dict[str, Any]]:
    """Average the divergence over the first tokens of all windows, those behind them, and so on."""
    compared = compared_windows(measured)
    if not compared:
        return []
    per_token = np.mean([each.kl for each in compared], axis=0)
    edges = [0]
    while edges[-1] < len(per_token):
        edges.append(min(len(per_token), max(FIRST_BIN, 2 * edges[-1])))
    return [
        {"from": start + 1, "to": end, "kl": float(per_token[start:end].mean())}
        for start, end in pairwise(edges)
    ]


def worst_tokens(measured: Measured, ids: NumpyArray, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Find the tokens at which a target predicts farthest from the original, worst first.

    Each has the text before it, what stands there, and what each model predicts first.
    """
    compared = compared_windows(measured)
    if not compared:
        return []
    divergence = np.array([each.kl for each in compared])[:, :-1]  # what follows the last is unread
    order = np.argsort(-divergence, axis=None, kind="stable")[:WORST]
    found = []
    for place in order:
        window, token = divmod(int(place), divergence.shape[1])
        value = float(divergence[window, token])
        if value < SMALLEST_SHOWN:
            break
        row = ids[window]
        says = {"original_says": compared[window], "target_says": measured[window]}
        found.append(
            {
                "before": written(tokenizer, row[max(0, token + 1 - CONTEXT) : token + 1]),
                "token": written(tokenizer, row[token + 1 : token + 2]),
                "kl": value,
                **{key: written(tokenizer, each.says[[token]]) for key, each in says.items()},
            }
        )
    return found


def written(tokenizer: Tokenizer, ids: NumpyArray) -> str:
    """Write tokens as text; an id that the tokenizer has no text for is its number."""
    text = tokenizer.decode([int(each) for each in ids], skip_special_tokens=False)
    return text or " ".join(f"<{int(each)}>" for each in ids)


def pairs_of(
    targets: Sequence[str], measured: Sequence[Measured], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """Compare every two targets window by window: a minus b, ratios a to b."""
    return [
        {"a": targets[a], "b": targets[b], **difference(measured[a], measured[b], texts)}
        for a, b in combinations(range(len(targets)), 2)
    ]


def difference(a: Measured, b: Measured, texts: Sequence[str]) -> dict[str, Any]:
    """Compare two targets; what needs an original is None without one."""
    losses = np.array([np.mean(x.losses) - np.mean(y.losses) for x, y in zip(a, b, strict=True)])
    found: dict[str, Any] = {
        "kl_difference": None,
        "interval": None,
        "perplexity_ratio": exponent(float(losses.mean())),
        "perplexity_ratio_interval": exponential(mean_interval(losses, texts)),
        "top1_difference": None,
        "top1_difference_interval": None,
    }
    of_a, of_b = compared_windows(a), compared_windows(b)
    if not of_a:
        return found
    divergence = means_of(of_a) - means_of(of_b)
    agreed = agreements(of_a) - agreements(of_b)
    return found | {
        "kl_difference": float(divergence.mean()),
        "interval": mean_interval(divergence, texts),
        "top1_difference": float(agreed.mean()),
        "top1_difference_interval": mean_interval(agreed, texts),
    }


def compared_windows(measured: Measured) -> list[Compared]:
    """List what the original says of each window; nothing without one."""
    return [each.compared for each in measured if each.compared is not None]

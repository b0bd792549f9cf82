"""Verdicts beside made-up anchors of the shape that ships, and beside those that ship."""

import json
import re
from importlib import resources

import pytest

from edgeq.measuring import anchors
from edgeq.measuring.anchors import Anchor, Anchors, read_anchors, show_kl, verdict

MADE_UP = Anchors(
    "Small-1M",
    "text",
    (
        Anchor("Q8_0", 8.5, 0.001),
        Anchor("Q5_K_M", 5.7, 0.01),
        Anchor("Q4_K_M", 4.8, 0.03),
        Anchor("Q2_K", 3.0, 0.9),
    ),
)


@pytest.mark.parametrize(
    ("kl", "said"),
    [
        (0.0, "Equal to the original: KL 0"),
        (0.0004, "Practically equal to the original: KL 0.0004, closer than llama.cpp's Q8_0"),
        (0.009, "Very close to the original: KL 0.009, about as close as llama.cpp's Q5_K_M"),
        (0.011, "Very close to the original: KL 0.011, about as close as llama.cpp's Q5_K_M"),
        (0.02, "between llama.cpp's Q5_K_M (0.01) and Q4_K_M (0.03, both of Small-1M)"),
        (0.031, "Close to the original: KL 0.031, about as close as llama.cpp's Q4_K_M"),
        (0.5, "Far from the original: KL 0.5, between llama.cpp's Q4_K_M (0.03) and Q2_K"),
        (1.0, "Far from the original: KL 1, about as close as llama.cpp's Q2_K"),
        (2.5, "Barely usable: KL 2.5, worse than llama.cpp's Q2_K (0.9, of Small-1M)"),
    ],
)
def test_a_verdict_names_the_nearest_anchors_and_their_model(monkeypatch, kl, said):
    monkeypatch.setattr(anchors, "read_anchors", lambda: MADE_UP)
    assert said in verdict(kl)
    assert kl == 0 or "Small-1M" in verdict(kl)


def test_without_anchors_a_verdict_says_how_to_read_the_number(monkeypatch):
    monkeypatch.setattr(anchors, "read_anchors", lambda: None)
    assert verdict(0.02) == (
        "KL 0.02 nats per token from the original (0 is equal, lower is better)"
    )


def test_every_anchor_that_ships_is_its_own_nearest():
    found = read_anchors()
    file = resources.files("edgeq") / "data" / "anchors.json"
    assert (found is not None) == file.is_file()
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.is_file() else []
    for row in rows:
        said = verdict(row["kl"])
        others = [other["type"] for other in rows if abs(other["kl"] / row["kl"] - 1) < 0.01]
        assert any(re.search(rf"about as close as llama\.cpp's {kind} ", said) for kind in others)


def test_two_digits_count():
    assert [show_kl(kl) for kl in (0.00912, 0.0865, 1.234, 0.00001)] == [
        "0.0091",
        "0.086",
        "1.2",
        "1e-05",
    ]

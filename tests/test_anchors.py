"""Verdicts beside made-up anchors of the shape that ships, and beside those that ship."""

import re

import pytest

from edgeq.measuring import anchors
from edgeq.measuring.anchors import Anchor, Anchors, anchors_for, read_anchors, show_kl, verdict

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
    monkeypatch.setattr(anchors, "read_anchors", lambda: {"Small-1M": MADE_UP})
    assert said in verdict(kl)
    assert kl == 0 or "Small-1M" in verdict(kl)


@pytest.mark.parametrize("model", read_anchors())
def test_every_anchor_that_ships_is_its_own_nearest(model):
    rows = anchors_for(model).rows
    for row in rows:
        said = verdict(row.kl, model)
        alike = [other.type for other in rows if abs(other.kl / row.kl - 1) < 0.01]
        assert any(re.search(rf"about as close as llama\.cpp's {kind} ", said) for kind in alike)
        assert said.endswith(f"(of {model})")


def test_a_model_that_was_measured_has_anchors_of_its_own_and_others_those_of_the_first():
    first, demo = read_anchors()
    assert verdict(0.0865, demo).startswith("Close") and f"both of {demo}" in verdict(0.0865, demo)
    assert verdict(0.0865, "another") == verdict(0.0865, first) == verdict(0.0865)


def test_two_digits_count():
    assert [show_kl(kl) for kl in (0.00912, 0.0865, 1.234, 0.00001)] == [
        "0.0091",
        "0.086",
        "1.2",
        "1e-05",
    ]

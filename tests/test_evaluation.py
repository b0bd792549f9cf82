import numpy as np
import pytest

from edgeq.errors import BadInput
from edgeq.measuring.quality import compare
from edgeq.measuring.run_export import measured


def log_probabilities(logits):
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def perplexity(logits, windows):
    """exp of the mean negative log probability of each token given those before it, position by
    position.
    """
    p = log_probabilities(logits)
    losses = [
        -p[window, place, windows[window, place + 1]]
        for window in range(windows.shape[0])
        for place in range(windows.shape[1] - 1)
    ]
    return np.exp(np.mean(losses))


@pytest.fixture
def predictions(rng):
    """Windows, target logits and reference logits."""
    reference = 4 * rng.standard_normal((3, 20, 50))
    target = reference + 0.7 * rng.standard_normal(reference.shape)
    return rng.integers(0, 50, (3, 20)), target.astype(np.float32), reference.astype(np.float32)


def test_perplexity_is_that_of_next_token_prediction(predictions):
    windows, target, _ = predictions
    quality = compare(windows, iter(target))
    assert quality.perplexity == pytest.approx(perplexity(target, windows), rel=1e-6)
    assert quality.tokens == 60
    assert (quality.reference_perplexity, quality.kl, quality.top1_agreement) == (None, None, None)


def test_divergence_and_agreement_are_averages_over_positions(predictions):
    windows, target, reference = predictions
    quality = compare(windows, target, reference)
    p, q = log_probabilities(reference), log_probabilities(target)
    assert quality.kl == pytest.approx((np.exp(p) * (p - q)).sum(axis=-1).mean(), rel=1e-5)
    assert quality.top1_agreement == (p.argmax(axis=-1) == q.argmax(axis=-1)).mean()
    assert quality.reference_perplexity == pytest.approx(perplexity(reference, windows), rel=1e-6)
    assert quality.perplexity == pytest.approx(perplexity(target, windows), rel=1e-6)


def test_a_model_compared_with_itself_does_not_differ(predictions):
    windows, target, _ = predictions
    quality = compare(windows, target, target)
    assert quality.kl == 0
    assert quality.top1_agreement == 1
    assert quality.perplexity == quality.reference_perplexity


def test_a_constant_added_to_all_logits_changes_nothing(predictions):
    windows, target, reference = predictions
    assert compare(windows, target + 1000, reference - 1000).kl == pytest.approx(
        compare(windows, target, reference).kl, rel=1e-3
    )


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    quality = compare(np.zeros((2, 8), int), np.zeros((2, 8, 50), np.float32))
    assert quality.perplexity == pytest.approx(50, rel=1e-6)


def test_logits_are_left_as_they_were(predictions):
    windows, target, reference = predictions
    before = target.copy(), reference.copy()
    compare(windows, target, reference)
    np.testing.assert_array_equal(target, before[0])
    np.testing.assert_array_equal(reference, before[1])


def test_a_runtime_that_drops_windows_is_noticed(predictions):
    windows, target, reference = predictions
    with pytest.raises(ValueError, match="shorter"):
        compare(windows, target, reference[:2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("whose", ["target", "reference"])
def test_predictions_that_are_no_numbers_are_an_error(predictions, value, whose):
    windows, target, reference = predictions
    {"target": target, "reference": reference}[whose][1, 2, 3] = value
    with pytest.raises(BadInput, match=f"the {whose} predicts NaN or infinity"):
        compare(windows, target, reference)


def test_a_perplexity_beyond_all_numbers_is_an_error():
    logits = np.zeros((1, 8, 50), np.float32)
    logits[:, :, 7] = 1e6
    with pytest.raises(BadInput, match="perplexity is beyond"):
        compare(np.zeros((1, 8), int), logits)


def test_windows_of_one_token_predict_nothing():
    with pytest.raises(BadInput, match="give windows of 2 tokens or more"):
        compare(np.zeros((2, 1), np.int64), [np.zeros((1, 8), np.float32)] * 2)


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_reference_whose_logits_are_all_zero_has_no_scale(value):
    ids = np.zeros((1, 4), np.int64)
    zeros, found = np.zeros((4, 8), np.float32), np.full((4, 8), value, np.float32)
    result = measured(ids, [found], [zeros])
    assert result["logit_difference"] == value
    assert result["kl"] == pytest.approx(0.0, abs=1e-7)

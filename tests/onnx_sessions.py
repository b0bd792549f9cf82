"""Exported ONNX graphs in ONNX Runtime at accuracy level 0 on one thread: whole texts, and steps
with the cache.
"""

import numpy as np

from edgeq_backends.onnx_runtime import open_session
from edgeq_exporters.onnx.exporter import OnnxExporter

CLOSE = 1e-3  # of the largest logit; a wrong frequency or a missing bias moves logits by tenths


def exported(model, directory, **options):
    """The graph's file."""
    directory.mkdir(exist_ok=True)
    return OnnxExporter(**options).write(model, directory)[0]


def empty_cache(session, batch):
    shapes = {
        value.name: value.shape for value in session.get_inputs() if value.name.startswith("past")
    }
    return {
        name: np.zeros((batch, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()
    }


def advance(session, cache, ids, mask):
    """Logits of new tokens and the cache with them. Shapes: ids (batch, new), mask (batch, cached
    and new).
    """
    names = [value.name for value in session.get_outputs()]
    logits, *present = session.run(names, {"input_ids": ids, "attention_mask": mask, **cache})
    return logits, {
        name.replace("present", "past_key_values"): array
        for name, array in zip(names[1:], present, strict=True)
    }


def onnx_logits(file, ids, *, accuracy_level=0):
    """All tokens at once."""
    session = open_session(file, threads=1, accuracy_level=accuracy_level)
    return advance(session, empty_cache(session, len(ids)), ids, np.ones_like(ids))[0]


def stepwise_logits(file, ids, *, first):
    """Some tokens at once, then one after the other with the cache."""
    session = open_session(file, threads=1)
    logits, cache = advance(
        session, empty_cache(session, len(ids)), ids[:, :first], np.ones_like(ids[:, :first])
    )
    parts = [logits]
    for end in range(first + 1, ids.shape[1] + 1):
        logits, cache = advance(session, cache, ids[:, end - 1 : end], np.ones_like(ids[:, :end]))
        parts.append(logits)
    return np.concatenate(parts, axis=1)


def assert_alike(found, reference):
    assert np.abs(found - reference).max() < CLOSE * np.abs(reference).max()
    np.testing.assert_array_equal(found.argmax(-1), reference.argmax(-1))

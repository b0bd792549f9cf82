"""`edgeq doctor` says what works here; what is broken or crashes does not end it."""

import json
import os
import sys

import pytest

from edgeq.commands import doctor, trials
from edgeq.registry import BACKENDS
from edgeq.words import BY_UV_RUN

BROKEN = "raise OSError('a library that does not load')\n"


@pytest.mark.slow
def test_everything_is_tried_and_each_failure_named(edgeq, tmp_path, monkeypatch):
    """onnxruntime is broken, gguf is missing, and mlx takes its process down."""
    (tmp_path / "onnxruntime.py").write_text(BROKEN, encoding="utf-8")
    missing = "raise ModuleNotFoundError('no gguf', name='gguf')\n"
    (tmp_path / "gguf.py").write_text(missing, encoding="utf-8")
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "__init__.py").write_text("import os; os.abort()\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.delenv(BY_UV_RUN, raising=False)  # its command is another one
    result = edgeq("doctor", "--json")
    assert result.status == 0
    rows = {row["name"]: row for row in json.loads(result.out)["trials"]}
    assert rows.keys() >= BACKENDS.keys()
    assert (rows["cpu"]["works"], rows["reference"]["works"]) == (True, True)
    assert rows["cpu"]["versions"].keys() == {"torch"}
    assert "does not load" in rows["onnxruntime"]["problem"]
    assert rows["onnxruntime"]["command"] is None
    assert "gguf" in rows["gguf"]["problem"]
    assert rows["gguf"]["command"].endswith("[gguf]'")
    for name in ("mlx", "mlx-lm"):
        assert "crashed" in rows[name]["problem"]


def test_a_trial_that_works_has_no_problem():
    trial = next(each for each in trials.GROUPS["torch"] if each.name == "reference")
    assert trials.run_trial(trial) == {"works": True, "problem": None, "missing": False}


def test_what_is_missing_has_a_command(monkeypatch):
    row = {"works": False, "problem": "no x", "versions": {}, "command": "pip install x"}
    assert doctor.verdict_words(row) == ("missing", "no x; to install it: pip install x")
    assert doctor.verdict_words({**row, "command": None}) == ("no", "no x")
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert doctor.install_command("onnx") == "uv sync --inexact --extra onnx"

"""Checkpoints whose reports, measurements and names are made up, some of them hostile."""

import json
import shutil

import pytest
from checkpoints import tiny_checkpoint
from page_data import HOSTILE, budget, layer, quality, run_report

from edgeq.checkpoint.reader import Checkpoint
from edgeq.files.json_files import write_json
from edgeq.run.measured import Measured, write_measured
from edgeq.solving.report import LayerReport, Stage


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A checkpoint that tests copy."""
    return tiny_checkpoint(tmp_path_factory.mktemp("made")).path


@pytest.fixture(scope="session")
def make_run(made, tmp_path_factory):
    """Copy the checkpoint under a name, with a report, measurements and head of its own."""

    def make(name="run", report=None, measured=None, **head):
        place = shutil.copytree(made, tmp_path_factory.mktemp("runs") / name)
        write_json(place / "report.json", (report or run_report()).plain())
        stated = json.loads((place / "edgeq.json").read_text(encoding="utf-8"))
        write_json(place / "edgeq.json", stated | head)
        if measured is not None:
            write_measured(Checkpoint(place), measured)
        return Checkpoint(place)

    return make


@pytest.fixture(scope="session")
def full_run(make_run):
    """A run of which everything is known."""
    answers = [{"prompt": "Why?", "original": "Because.", "quantized": "As."}]
    measured = Measured(
        quality(),
        answers,
        {"solve": 75.0, "write": 2.5},
        900_000_000,
        {"original at 16 bits": 269_000_000, "checkpoint": 90_000_000, "gguf": 98_000_000},
    )
    return make_run("full", run_report(budget=budget()), measured)


@pytest.fixture(scope="session")
def hostile_run(make_run):
    """A run in which each text that may come from outside is hostile."""
    layers = [
        layer(f"model.layers.{block}.{HOSTILE}", 0.1, 0.05, damping=0.1, damping_retries=2)
        for block in range(2)
    ]
    layers.append(LayerReport(HOSTILE, (32, 32), 3, 32, {Stage.SOLVED: 0.2}, type=HOSTILE))
    report = run_report(layers=layers, budget=budget(HOSTILE), kept_dense={HOSTILE: 2})
    report.bits_per_weight[HOSTILE] = 1.0
    answers = [dict.fromkeys(("prompt", "original", "quantized"), HOSTILE)]
    measured = Measured(
        quality(HOSTILE), answers, {HOSTILE: 3.0}, 10**9, {"checkpoint": 9, HOSTILE: 10}
    )
    calibration = {"texts": [{"name": HOSTILE, "share": 1.0, "samples": 2, "tokens": 100}]}
    recipe = {"solver": HOSTILE, "overrides": [{"layers": HOSTILE}], "sequence_length": 16}
    return make_run(
        "hostile", report, measured, model=HOSTILE, recipe=recipe, calibration=calibration
    )

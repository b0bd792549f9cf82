"""The script that measures a GPU runs where there is none, on tiny shapes."""

import json

import pytest

from benchmarks import speed
from benchmarks.speed_floor import SHAPES, floor_of

PARTS = [
    f"{part} {preset}"
    for parts in (("run",), ("stages", "kernels"))
    for preset in ("balanced", "fast")
    for part in parts
]


def measured(monkeypatch, folder, *words):
    """What the script writes, and its status."""
    path = folder / "speed.json"
    script = ["speed.py", "--device", "cpu", "--shapes", "tiny", "--output", str(path), *words]
    monkeypatch.setattr("sys.argv", script)
    with pytest.raises(SystemExit) as ended:
        speed.main()
    return json.loads(path.read_text()), ended.value.code


def test_parts_for_which_no_time_is_left_are_named(tmp_path, monkeypatch, one_thread):
    found, status = measured(monkeypatch, tmp_path, "--seconds", "0")
    assert (found["left_out"], bool(status)) == (PARTS, False)
    assert all(seconds > 0 for seconds in found["floor"].values())
    assert found["about"]["shapes"] == SHAPES["tiny"].sizes
    assert found["about"]["versions"]["torch"]


@pytest.mark.slow
def test_every_part_of_the_script_measures_something(tmp_path, monkeypatch, one_thread):
    found, status = measured(monkeypatch, tmp_path, "--blocks", "2", "--seconds", "3600")
    assert (found["left_out"], bool(status)) == ([], False)
    for preset, share in (("balanced", 0.25), ("fast", 0)):
        run = found[f"run {preset}"]
        assert len(run["seconds_blocks"]) == found["about"]["blocks_run"] == 2
        assert sum(run["seconds_blocks"]) < run["seconds_run"]
        assert run["floor"] == pytest.approx(floor_of(found["floor"], share))
        assert run["to_the_floor"] == pytest.approx(run["seconds_block"] / run["floor"])
        assert {"search scales", "solve", "statistics"} <= set(found[f"stages {preset}"])
        kernels = found[f"kernels {preset}"]
        assert (
            7 * kernels["layer"]
            == kernels["block"]
            > sum(row["count"] for row in kernels["most"][:3])
        )
    assert found["kernels balanced"]["block"] > found["kernels fast"]["block"]

"""`--calibration`, several times and with text that the model writes itself, as users type it."""

import hashlib
import json

import numpy as np
import pytest

SHORT = ["--samples", "6", "--sequence-length", "32"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "edgeq"


def calibration_of(folder):
    return json.loads((folder / "edgeq.json").read_text())["calibration"]


@pytest.mark.parametrize("backend", ["cpu", "mlx", "reference"])
def test_the_model_writes_its_own_text_once_and_the_same_run_writes_the_same_bytes(
    edgeq, saved_model, text_file, cache, tmp_path, backend
):
    if backend == "mlx":
        pytest.importorskip("mlx.core", reason="MLX has no build for this system")
    options = [
        *SHORT,
        "--backend",
        backend,
        "--calibration",
        "self",
        "--calibration",
        f"{text_file}=2",
    ]
    first = edgeq("quantize", saved_model, "-o", tmp_path / "first", *options)
    assert first.status == 0
    assert "writing text, 64 of 64 tokens" in first.err
    second = edgeq("quantize", saved_model, "-o", tmp_path / "second", *options)
    assert "writing" not in second.err
    for file in ("edgeq.json", "blocks/0001.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    own, book = calibration_of(tmp_path / "first")["texts"]
    [kept] = cache.iterdir()
    tokens = np.load(kept, allow_pickle=False)
    assert own == {
        "name": "self",
        "share": 1,
        "samples": 2,
        "tokens": 64,
        "sha256": hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest(),
    }
    assert (book["name"], book["share"], book["samples"]) == (text_file.name, 2, 4)
    assert book["sha256"] == hashlib.sha256(text_file.read_bytes()).hexdigest()


def test_the_solution_depends_on_what_the_model_wrote(edgeq, saved_model, text_file, tmp_path):
    for name, text in (("own", "self"), ("file", text_file)):
        edgeq(
            "quantize",
            saved_model,
            "-o",
            tmp_path / name,
            *SHORT,
            "--backend",
            "cpu",
            "--calibration",
            text,
        )
    own, file = (calibration_of(tmp_path / name)["sha256"] for name in ("own", "file"))
    assert own != file
    blocks = [
        (tmp_path / name / "blocks" / "0000.safetensors").read_bytes() for name in ("own", "file")
    ]
    assert blocks[0] != blocks[1]


def test_nothing_is_written_by_a_model_that_is_only_rounded(edgeq, saved_model, cache, tmp_path):
    rounding = [
        "--solver",
        "rtn",
        "--scales",
        "none",
        "--propagation-strength",
        "0",
        "--backend",
        "cpu",
    ]
    assert (
        edgeq(
            "quantize", saved_model, "-o", tmp_path / "out", *rounding, "--calibration", "self"
        ).status
        == 0
    )
    assert calibration_of(tmp_path / "out") is None
    assert not cache.exists()


def test_a_home_directory_is_understood_in_front_of_a_share(
    edgeq, saved_model, text_file, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(text_file.parent))
    options = [*SHORT, "--backend", "cpu", f"--calibration=~/{text_file.name}=2"]
    assert edgeq("quantize", saved_model, "-o", tmp_path / "out", *options).status == 0
    assert calibration_of(tmp_path / "out")["texts"][0]["share"] == 2


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (["self=0"], "above 0"),
        (["self=x"], "above 0"),
        (["self", "self=2"], "given twice"),
        (["nowhere.txt"], "text 'nowhere.txt'"),
        (["nowhere.txt=2"], "text 'nowhere.txt'"),
        (["self=0.001"], "none of the 4"),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_one_line(refuse, saved_model, values, reason):
    """The text file of every refused run is among the texts as well."""
    assert reason in refuse(
        saved_model, *(word for value in values for word in ("--calibration", value))
    )

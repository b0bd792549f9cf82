"""What was measured of a run: stored, read back, refused where damaged, and of no hash."""

import hashlib
import json
import math
import os
import shutil

import pytest
from checkpoints import tiny_checkpoint

from edgeq.checkpoint.certificate import seal_of
from edgeq.checkpoint.reader import Checkpoint
from edgeq.errors import BadInput
from edgeq.files.ownership import PAGE_MARK, foreign_entry
from edgeq.files.storage import check_destination
from edgeq.run.measured import (
    MEASURED_FILE,
    PAGE_FILE,
    Measured,
    read_measured,
    write_measured,
)

QUALITY = {
    "target": "small",
    "runtime": "torch",
    "reference": "transformers",
    "tokens": 8192,
    "perplexity": 31.5,
    "reference_perplexity": 30.25,
    "kl": 0.0865,
    "top1_agreement": 0.875,
    "intervals": {"kl": [0.08, 0.09]},
    "windows": [{"text": "a.txt", "tokens": 512, "kl": 0.1, "loss": 3.0, "agreed": 400}],
    "by_position": [{"from": 1, "to": 64, "kl": 0.1}],
    "worst_tokens": [
        {"before": "the", "token": " cat", "kl": 3.5, "original_says": " cat", "target_says": " a"}
    ],
    "texts": [],
    "tasks": [],
    "bytes": 98_000_000,
    "bits_per_weight": 4.5,
}
ANSWERS = [{"prompt": "Why?", "original": "Because.", "quantized": "As."}]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("measured")).path


@pytest.fixture
def checkpoint(made, tmp_path):
    """A checkpoint that a test may change."""
    return Checkpoint(shutil.copytree(made, tmp_path / "copy"))


def test_measurements_come_back_from_their_file(checkpoint):
    assert read_measured(checkpoint) is None
    for measured in (
        Measured(),
        Measured(QUALITY, ANSWERS, {"solve": 1.25}, 10**9, {"checkpoint": 123}),
    ):
        write_measured(checkpoint, measured)
        found = read_measured(checkpoint)
        assert (found.quality, [*found.answers]) == (measured.quality, [*measured.answers])
        assert (found.seconds, found.memory_peak, found.sizes) == (
            measured.seconds,
            measured.memory_peak,
            measured.sizes,
        )


@pytest.mark.parametrize(
    ("target", "stored"), [("{}", "."), ("{}/gguf/a.gguf", "gguf/a.gguf"), ("/home/me/b", "b")]
)
def test_a_target_is_stored_as_seen_from_its_checkpoint(checkpoint, target, stored):
    named = target.format(checkpoint.path)
    write_measured(checkpoint, Measured({**QUALITY, "target": named}))
    assert read_measured(checkpoint).quality["target"] == stored


def test_what_json_cannot_hold_is_null(checkpoint):
    quality = {**QUALITY, "perplexity": math.inf, "windows": ({"kl": math.nan},)}
    write_measured(checkpoint, Measured(quality))
    found = read_measured(checkpoint).quality
    assert (found["perplexity"], found["windows"]) == (None, [{"kl": None}])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (b"{", "cannot be read as JSON"),
        (b"[]", "a JSON list and not an object"),
        ({"version": 2}, "version 2"),
        ({"version": True}, "version True"),
        ({"version": None}, "version None"),
        ({"quality": 3}, "quality is no object"),
        ({"quality": {"kl": "small"}}, "quality.kl is 'small'"),
        ({"quality": {"kl": True}}, "quality.kl is True"),
        ({"quality": {"tokens": -1}}, "quality.tokens is -1"),
        ({"quality": {"intervals": {"kl": [2, 1]}}}, "quality.intervals is"),
        ({"quality": {"windows": {}}}, "quality.windows is no list"),
        ({"quality": {"by_position": [{"from": 1.5}]}}, r"quality.by_position\[0\].from is 1.5"),
        ({"quality": {"worst_tokens": ["x"]}}, r"quality.worst_tokens\[0\] is no object"),
        ({"quality": {"worst_tokens": [{"token": 3}]}}, r"worst_tokens\[0\].token is 3"),
        ({"quality": {"texts": [{"name": "a", "kl": []}]}}, r"texts\[0\].kl is \[\]"),
        ({"quality": {"tasks": [{"interval": [1]}]}}, r"tasks\[0\].interval is \[1\]"),
        ({"answers": [{"prompt": ["x"]}]}, r"answers\[0\].prompt is"),
        ({"seconds": {"solve": "long"}}, "seconds is"),
        ({"memory_peak": 1.5}, "memory_peak is 1.5"),
        ({"sizes": {"checkpoint": -3}}, "sizes is"),
    ],
)
def test_damaged_measurements_are_refused_in_one_line(checkpoint, damage, named):
    path = checkpoint.path / MEASURED_FILE
    stored = damage if isinstance(damage, bytes) else json.dumps({"version": 1} | damage).encode()
    path.write_bytes(stored)
    with pytest.raises(BadInput, match=named) as caught:
        read_measured(checkpoint)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
def test_a_link_out_of_the_checkpoint_is_not_followed(checkpoint, tmp_path):
    (tmp_path / "elsewhere.json").write_text('{"version": 1}')
    (checkpoint.path / MEASURED_FILE).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BadInput, match="leads out of its checkpoint"):
        read_measured(checkpoint)


def test_no_hash_of_a_checkpoint_counts_measurements_and_page(checkpoint):
    def seal():
        return seal_of(Checkpoint(checkpoint.path))

    before = seal()
    write_measured(checkpoint, Measured(seconds={"solve": 1.5}))
    (checkpoint.path / PAGE_FILE).write_bytes(PAGE_MARK)
    assert seal() == before


def test_measurements_and_page_are_edgeqs_own_and_a_page_of_others_is_not(checkpoint):
    write_measured(checkpoint, Measured())
    page = checkpoint.path / PAGE_FILE
    page.write_bytes(b"<!doctype html><head>" + PAGE_MARK)
    assert foreign_entry(checkpoint.path) is None
    check_destination(checkpoint.path, force=True)
    page.write_text("<!doctype html><title>My thesis</title>")
    before = hashlib.sha256(page.read_bytes()).digest()
    with pytest.raises(BadInput, match=f"holds '{PAGE_FILE}', which edgeq did not write"):
        check_destination(checkpoint.path, force=True)
    assert hashlib.sha256(page.read_bytes()).digest() == before


@pytest.mark.parametrize("name", ["report.json", MEASURED_FILE, PAGE_FILE])
def test_what_a_killed_process_leaves_of_a_file_written_anew_is_edgeqs_own(checkpoint, name):
    (checkpoint.path / f".{name}.partial").write_bytes(b"half")
    assert foreign_entry(checkpoint.path) is None


@pytest.mark.parametrize(
    "stated",
    [
        {"license": "mit\n# A heading", "license_name": "a\nADAPTER /etc/passwd"},
        {"license": "<script>", "license_name": "\u202eevil", "languages": ["]: x"]},
        {"license": 5, "base_models": {"a": 1}, "languages": [None, 3, ["en"]]},
        {"license_link": "/home/me/LICENSE", "repository": "../..", "base_models": ["/home/me"]},
        {"license_link": "file:///home/me", "license_name": "~/x", "repository": "C:\\me"},
    ],
)
def test_an_origin_that_no_card_may_state_is_unknown(checkpoint, stated):
    """A head is a file that anybody may have written; cards and Modelfiles are made from it."""
    head = json.loads((checkpoint.path / "edgeq.json").read_text())
    (checkpoint.path / "edgeq.json").write_text(json.dumps({**head, "origin": stated}))
    assert not Checkpoint(checkpoint.path).record.origin.plain()

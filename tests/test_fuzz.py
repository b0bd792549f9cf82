"""A bounded share of `python -m benchmarks.fuzz`: hundreds of mutants over all readers.

It runs in a process of its own: it forks, which a process that has run frameworks must not.
"""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz.json_text import mutate_json
from benchmarks.fuzz.mutations import fields_of_gguf, mutate_gguf, mutate_safetensors

ROOT = Path(__file__).parent.parent
MUTANTS, SEED = 352, 20261126

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are those of Linux")


def fuzz(folder, *options):
    """Run the fuzzer; gives its status, the escapes it lists, and its table."""
    table = folder / "fuzz.md"
    command = [sys.executable, "-m", "benchmarks.fuzz", "--light", "--output", str(table)]
    run = subprocess.run(
        [*command, *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = table.with_suffix(".jsonl").read_text().splitlines() if table.exists() else [run.stderr]
    return run.returncode, lines, table.read_text() if table.exists() else ""


def test_no_mutant_of_any_reader_escapes(tmp_path):
    status, escapes, table = fuzz(tmp_path, "--mutants", MUTANTS, "--seed", SEED)
    assert (status, escapes) == (0, [])
    assert f"| all | {MUTANTS} |" in table


# What a child does instead of reading, by the kind of escape that it has to be told as.
ESCAPES = {
    "ZeroDivisionError": "1 / 0",
    "MemoryError": "bytearray(4 << 30)",
    "died of SIGSEGV": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "ended with 3": "import os; os._exit(3)",
    "hang": "import time; time.sleep(60)",
    "wrote outside": "open('/tmp/edgeq-fuzz-outside', 'w')",
    "wrote outside ": "import shutil; shutil.rmtree(case.folder.parent / 'canary')",
    "changed, and verified": "raise readers.Escape('changed, and verified')",
}


@pytest.mark.parametrize("kind", ESCAPES)
def test_every_kind_of_escape_is_seen(tmp_path, kind):
    code = f"""
import sys
from pathlib import Path
from benchmarks.fuzz import readers, running
running.SECONDS = 1
def read(case):
    if case.chance.random() < 0.5:
        {ESCAPES[kind]}
place = Path({str(tmp_path)!r})
(place / "inputs" / "recipe").mkdir(parents=True)
(place / "inputs" / "recipe" / "recipe.toml").write_text("bits = 4")
readers.READERS["recipe"] = readers.Reader(read)
found = running.outcomes("recipe", range(6), (place / "inputs", place / "work"), 1)
for outcome in found:
    print(outcome.index, outcome.kind)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    told = dict(line.split(" ", 1) for line in run.stdout.splitlines())
    assert list(told) == [str(index) for index in range(6)]
    escaped = {text for text in told.values() if text != "accepted"}
    assert len(escaped) == 1 and escaped.pop().startswith(kind.strip())
    assert "accepted" in told.values()
    assert not Path("/tmp/edgeq-fuzz-outside").exists()


def test_a_mutant_depends_on_its_seed_alone():
    content = json.dumps({"a": [1, 2.5, "text", None, {"b": True}], "c": {}}).encode()
    for seed in range(200):
        first, again = (mutate_json(random.Random(seed), content) for _ in range(2))
        assert first == again
    assert len({mutate_json(random.Random(seed), content) for seed in range(200)}) > 150


def test_headers_are_changed_where_they_have_fields(tmp_path):
    name = b"general.architecture"
    pair = len(name).to_bytes(8, "little") + name + (4).to_bytes(4, "little") + bytes(4)
    header = b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little") + pair
    kinds = [(kind, size) for kind, _, size in fields_of_gguf(header)]
    assert kinds == [
        ("number", 4),
        ("number", 8),
        ("number", 8),
        ("text", len(name)),
        ("number", 4),
        ("number", 4),
    ]
    assert len({mutate_gguf(random.Random(seed), header) for seed in range(100)}) > 50
    text = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    whole = len(text).to_bytes(8, "little") + text + bytes(4)
    lengths = [
        (changed, int.from_bytes(changed[:8], "little"))
        for changed in (mutate_safetensors(random.Random(seed), whole) for seed in range(100))
    ]
    stated_right = [len(changed) == 8 + length + 4 for changed, length in lengths]
    assert sum(stated_right) > 40

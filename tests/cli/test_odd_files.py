"""Files that are none, names that no system takes, files that shrink while they are read, and disks
that are full: one line each, and no wait.
"""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_line import finished as run_to_the_end
from exported_files import gguf_in

from edgeq.checkpoint.reader import Checkpoint
from edgeq.commands.plain_text import visible, visible_line
from edgeq.errors import BadInput
from edgeq.files.plain_files import open_file
from edgeq.files.storage import check_destination
from edgeq.sources import open_source
from edgeq.sources.safetensors_directory import SafetensorsDirectory

PLAIN = ["--solver", "rtn", "--scales", "none", "--propagation-strength", "0", "--backend", "cpu"]
FORMATS = ("gguf", "mlx", "onnx", "gptq", "compressed-tensors")
EVIL = "ev\x1b[31mil\x07\x9b2J\u202eabc"
SHOWN = "ev\\x1b[31mil\\x07\\x9b2J\\u202eabc"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="FIFOs and limits as POSIX has them")


def one_line(result, status=1):
    assert (result.status, result.err.count("\n")) == (status, 1), result.err
    assert "unexpected" not in result.err and "report it" not in result.err
    return result.err


@pytest.fixture(scope="module")
def solved(saved_model, tmp_path_factory):
    """A finished checkpoint with an export in each format that a test may copy."""
    folder = tmp_path_factory.mktemp("solved") / "out"
    run_to_the_end(
        "quantize", saved_model, "-o", folder, *PLAIN, "--export", "gguf", "--export", "mlx"
    )
    return folder


@pytest.fixture
def checkpoint(solved, tmp_path):
    return shutil.copytree(solved, tmp_path / "solved")


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets have to be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def make_directory(path):
    path.mkdir()


def make_link_to_a_device(path):
    path.symlink_to("/dev/zero")


def make_loop(path):
    path.symlink_to(path)


def make_dangling_link(path):
    path.symlink_to(path.with_name("not-there"))


ODD = (
    make_fifo,
    make_socket,
    make_directory,
    make_link_to_a_device,
    make_loop,
    make_dangling_link,
)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"]
)
def test_what_is_no_file_in_a_model_is_refused(edgeq, model, tmp_path, name):
    for make in ODD:
        (model / name).unlink(missing_ok=True)
        make(model / name)
        line = one_line(edgeq("quantize", model, "-o", tmp_path / "out", *PLAIN))
        is_there = make not in {make_loop, make_dangling_link}
        assert name in line and ("cannot be read" in line or not is_there)
        shutil.rmtree(model / name) if make is make_directory else (model / name).unlink()


def test_what_is_no_file_as_index_or_shard_is_refused(edgeq, model, tmp_path):
    index = model / "model.safetensors.index.json"
    weights = (model / "model.safetensors").rename(tmp_path / "kept")
    for make in ODD:
        make(index)
        assert index.name in one_line(edgeq("inspect", model))
        shutil.rmtree(index) if make is make_directory else index.unlink()
    index.write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
    os.mkfifo(model / "shard.safetensors")
    assert "it is a FIFO, not a file" in one_line(edgeq("inspect", model))
    assert weights.exists()


def test_links_of_a_models_snapshot_into_a_cache_are_followed(model, tmp_path, saved_model):
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        blob = path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(os.path.relpath(blob, model))
    linked, plain = SafetensorsDirectory(model), SafetensorsDirectory(saved_model)
    assert linked.companions() == plain.companions()
    name = "model.norm.weight"
    np.testing.assert_array_equal(linked.read(name), plain.read(name))


@pytest.mark.parametrize("command", ["recipe", "gguf", "log-file"])
def test_what_is_no_file_as_an_argument_is_refused(edgeq, saved_model, tmp_path, command):
    path = tmp_path / "odd.gguf"
    for make in ODD:
        if command == "log-file" and make is make_dangling_link:
            continue  # the log is made where the link leads
        make(path)
        model = path if command == "gguf" else saved_model
        options = [] if command == "gguf" else [f"--{command}", path]
        line = one_line(edgeq("quantize", model, "-o", tmp_path / "out", *PLAIN, *options))
        assert "odd.gguf" in line
        assert sorted(each.name for each in tmp_path.iterdir()) == ["odd.gguf"]
        shutil.rmtree(path) if make is make_directory else path.unlink()


@pytest.mark.parametrize(
    "name", ["edgeq.json", "config.json", "blocks/0001.safetensors", "tokenizer.json"]
)
def test_what_is_no_file_in_a_checkpoint_is_refused(edgeq, checkpoint, tmp_path, name):
    for make in ODD:
        (checkpoint / name).unlink()
        make(checkpoint / name)
        line = one_line(edgeq("export", checkpoint, "--format", "gguf", "-o", tmp_path / "x"))
        assert name in line and not (tmp_path / "x").exists()
        if make is make_directory:
            shutil.rmtree(checkpoint / name)
            (checkpoint / name).touch()


@pytest.mark.parametrize(
    "name", ["edgeq.json", "config.json", "outer.safetensors", "tokenizer.json", "blocks"]
)
def test_links_out_of_a_checkpoint_are_not_followed(edgeq, checkpoint, tmp_path, name):
    moved = (checkpoint / name).rename(tmp_path / "elsewhere")
    (checkpoint / name).symlink_to(moved)
    line = one_line(edgeq("export", checkpoint, "--format", "gguf", "-o", tmp_path / "x"))
    assert "is a link that leads out of it; put the file itself there" in line
    assert not (tmp_path / "x").exists()


def test_a_checkpoint_may_be_given_by_a_link(edgeq, checkpoint, tmp_path):
    (tmp_path / "link").symlink_to(checkpoint)
    assert edgeq("export", tmp_path / "link", "--format", "onnx").status == 0


def test_what_is_no_file_as_a_manifest_is_refused(edgeq, checkpoint):
    for make in (make_fifo, make_directory):
        path = checkpoint / "gguf" / "manifest.json"
        path.unlink()
        make(path)
        assert "manifest.json" in one_line(edgeq("verify", path.parent))
        if make is make_directory:
            shutil.rmtree(path)
            path.touch()


@pytest.mark.parametrize(
    "name", ["gguf/*.gguf", "mlx/model.safetensors", "mlx/config.json", "mlx/tokenizer.json"]
)
def test_what_is_no_file_in_an_export_is_refused(edgeq, checkpoint, name):
    (path,) = checkpoint.glob(name)
    for make in (make_fifo, make_link_to_a_device, make_dangling_link):
        path.unlink()
        make(path)
        for command in (["verify", path.parent], ["evaluate", path.parent, "--windows", "1"]):
            assert path.name in one_line(edgeq(*command))


TOO_LONG = "x" * 300
DEEP = "/".join(["y" * 200] * 19)  # 3,800 characters: with what is made inside of it, too many


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (TOO_LONG, "File name too long"),
        ("x" * 245, "File name too long"),
        (f"{DEEP}/{'z' * 200}", "File name too long"),
        ("loop", "symbolic links"),
        ("loop/out", "symbolic links"),
        ("file", "not written by edgeq"),
        ("file/out", "can be written to"),
        ("fifo", "not written by edgeq"),
        ("a\0b", "no text"),
        ("a\udcffb", "no text"),
    ],
)
def test_an_output_that_no_system_makes_is_refused(tmp_path, name, reason):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    before = sorted(tmp_path.rglob("*"))
    for force in (False, True):
        refused = "exists" if not force and name in {"file", "fifo"} else reason
        with pytest.raises(BadInput, match=refused):
            check_destination(tmp_path / name, force=force)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", [TOO_LONG, f"{TOO_LONG}.gguf", "loop", "loop.gguf", "loop/x", ""])
def test_an_input_that_no_system_has_is_refused(edgeq, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for loop in ("loop", "loop.gguf"):
        (tmp_path / loop).symlink_to(loop)
    for command in (["quantize", name, "-o", "out"], ["inspect", name], ["evaluate", name]):
        one_line(edgeq(*command))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["quantize", "plan"])
@pytest.mark.parametrize("option", ["--output", "--recipe", "--calibration", "--log-file"])
def test_an_empty_name_is_refused(edgeq, saved_model, tmp_path, monkeypatch, command, option):
    monkeypatch.chdir(tmp_path)
    output = [] if option == "--output" else ["-o", "out"]
    assert "is empty; name" in one_line(edgeq(command, saved_model, *output, f"{option}="))
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_nothing_is_made_what_it_leads_to(edgeq, saved_model, tmp_path):
    (tmp_path / "out").symlink_to("large-disk")
    assert edgeq("quantize", saved_model, "-o", tmp_path / "out", *PLAIN).status == 0
    assert (tmp_path / "out").is_symlink() and (tmp_path / "large-disk/edgeq.json").is_file()


def test_escapes_are_shown_and_other_letters_stay():
    assert visible(EVIL) == SHOWN
    assert visible_line("a\nb\tc\u2028d\udcff") == "a\\nb\\tc\\u2028d\\udcff"
    assert visible("模型 é ñ 🐭 100%") == "模型 é ñ 🐭 100%"


def test_no_command_prints_escapes_that_stand_in_names(edgeq, model, tmp_path):
    evil = model.rename(tmp_path / EVIL)
    out, log = tmp_path / f"out{EVIL}", tmp_path / f"log{EVIL}"
    commands = [
        ["quantize", evil, "-o", out, *PLAIN, "--export", "gguf", "--log-file", log],
        ["quantize", evil, "-o", out, *PLAIN],
        ["quantize", evil, "-o", tmp_path / "x", "--recipe", evil],
        ["quantize", evil, "-o", tmp_path / "x", "--backend", EVIL],
        ["quantize", evil, "-o", tmp_path / "x", "--keep-dense", EVIL],
        ["quantize", evil, "-o", tmp_path / "x", "--bits", EVIL],
        ["plan", evil, "--sequence-length", "64"],
        ["inspect", evil],
        ["inspect", f"{evil}/none"],
        ["formats", out],
        ["export", out, "--format", EVIL],
        ["export", out, "--format", "mlx"],
        ["verify", out / "gguf"],
        [EVIL],
        ["quantize", f"--{EVIL}"],
    ]
    for command in commands:
        result = edgeq(*command)
        text = result.out + result.err
        assert text == visible(text), command
        if command[0] != "formats" and "verify" not in command:
            assert SHOWN in text.replace("\n", ""), command
    assert log.read_bytes() == visible(log.read_text()).encode()


def test_a_console_that_lacks_letters_ends_well(saved_model, tmp_path):
    """The result, a refusal, and wrong usage, on the code page of Windows and on plain ASCII."""
    folder = shutil.copytree(saved_model, tmp_path / "模型")
    arguments = ["quantize", str(folder), "-o", str(tmp_path / "出"), *PLAIN]
    result = run_with_encoding("cp1252", arguments)
    assert result.returncode == 0, result.stderr
    assert rb"\u6a21\u578b" in result.stdout and (tmp_path / "出" / "edgeq.json").is_file()
    for encoding, status, words in (("cp1252", 1, ["inspect", "模"]), ("ascii", 2, ["--模"])):
        result = run_with_encoding(encoding, words)
        assert (result.returncode, b"Traceback" in result.stderr) == (status, False)


def run_with_encoding(encoding, arguments):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "edgeq", *arguments]
    return subprocess.run(command, capture_output=True, env=environment, check=False)


def test_a_model_whose_name_is_no_text_is_quantized(edgeq, model, tmp_path):
    """Bytes that are no UTF-8 are legal in names of directories."""
    try:
        named = model.rename(tmp_path / "b\udcff")
    except OSError:
        pytest.skip("this file system takes names of text alone")
    run = edgeq("quantize", named, "-o", tmp_path / "out", *PLAIN, "--export", "gguf")
    assert run.status == 0, run.err
    field = gguf.GGUFReader(gguf_in(tmp_path / "out/gguf")).fields["general.name"]
    assert field.contents().rstrip("\ufffd") == "b"


def shortened(path):
    os.truncate(path, path.stat().st_size // 8)


def test_a_source_that_shrinks_while_it_is_read_is_named(solved, model, tmp_path):
    """A map of the file would end this process."""
    file = shutil.copy(gguf_in(solved / "gguf"), tmp_path / "model.gguf")
    source, directory = open_source(str(file)), open_source(str(model))
    shortened(file)
    shortened(model / "model.safetensors")
    last = {
        id(each): max(each.tensor_names(), key=each.tensor_bytes) for each in (source, directory)
    }
    for each in (source, directory):
        with pytest.raises(BadInput, match="became shorter while in use"):
            each.read(last[id(each)])


def test_a_checkpoint_that_shrinks_while_it_is_read_is_named(checkpoint):
    opened = Checkpoint(checkpoint)
    for name in ("blocks/0001.safetensors", "outer.safetensors"):
        path = checkpoint / name
        os.truncate(path, 8 + int.from_bytes(path.read_bytes()[:8], "little"))
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"):
        with pytest.raises(BadInput, match="became shorter while in use"):
            opened.quantized(name)
    with pytest.raises(BadInput, match="became shorter while in use"):
        opened.dense("model.norm.weight")


@pytest.fixture
def limit():
    """Let files grow to so many bytes and no further, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_full_disk_during_an_export_is_told_as_that(
    edgeq, solved, checkpoint, tmp_path, limit, format_name
):
    place = tmp_path / "x"
    arguments = ["export", checkpoint, "--format", format_name, "-o", place]
    for size in (20, 20_000, 60_000):
        limit(size)
        result = edgeq(*arguments)
        limit(resource.RLIM_INFINITY)
        line = one_line(result)
        assert "cannot be written: a file grew to the size limit" in line and "make room" in line
        assert not place.exists()


def test_a_full_disk_while_a_log_is_written_is_told_as_that(edgeq, saved_model, tmp_path, limit):
    arguments = ["quantize", saved_model, "-o", tmp_path / "out", *PLAIN]
    limit(10)
    result = edgeq(*arguments, "--log-file", tmp_path / "run.log")
    limit(resource.RLIM_INFINITY)
    line = one_line(result)
    assert "run.log': file too large; choose a file that can be written" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run.log"]


def test_a_refused_run_leaves_no_empty_log(edgeq, saved_model, tmp_path):
    (tmp_path / "old.log").touch()
    for log in ("new.log", "old.log"):
        arguments = ["quantize", saved_model, "-o", tmp_path / "out", "--group-size", "48"]
        one_line(edgeq(*arguments, "--export", "gguf", "--log-file", tmp_path / log))
    assert [path.name for path in tmp_path.iterdir()] == ["old.log"]


def test_a_device_is_not_waited_for():
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(OSError, match="it is a device, not a file"):
            open_file(Path(device))

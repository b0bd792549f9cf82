"""Files of importance matrices: what llama.cpp writes is read, what is none is refused."""

import io
import struct

import gguf
import numpy as np
import pytest

from edgeq.errors import BadInput
from edgeq.sources.imatrix_file import Entry, is_imatrix, read_entries, write_entries

NAME = "blk.0.attn_q.weight"
STACK = "blk.0.ffn_up_exps.weight"


@pytest.fixture
def entries(rng):
    """A layer of 6 inputs, and three experts of 5, one of which no token reached."""
    stacked = rng.random((3, 5))
    stacked[1] = 0
    counts = np.array([3.0, 0.0, 5.0])
    return {STACK: Entry(stacked, counts), NAME: Entry(rng.random((1, 6)), np.array([8.0]))}


class Matrix(gguf.GGUFWriter):
    """The gguf library's own writer, without the architecture that such files do not state."""

    def add_architecture(self):
        pass


def by_the_library(path, tensors, kind="imatrix"):
    """Write arrays as the gguf library does."""
    writer = Matrix(path, "")
    if kind is not None:
        writer.add_string("general.type", kind)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sums(*values):
    return np.array([values], dtype=np.float32)


def good(**changes):
    tensors = {f"{NAME}.in_sum2": sums(1, 2), f"{NAME}.counts": sums(4)} | changes
    return {name: array for name, array in tensors.items() if array is not None}


def binary(*entries, end=b""):
    """Lay out the older kind: name, calls and values of each entry."""
    parts = [struct.pack("<i", len(entries))]
    for name, calls, values in entries:
        data = name.encode() if isinstance(name, str) else name
        parts += [struct.pack("<i", len(data)), data, struct.pack("<ii", calls, len(values))]
        parts.append(np.array(values, "<f4").tobytes())
    return b"".join(parts) + end


def test_the_gguf_library_reads_what_is_written_and_finds_the_keys_of_llama_cpp(tmp_path, entries):
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        write_entries(file, entries, datasets=["a.txt", "ü"], chunks=7, size=512)
    reader = gguf.GGUFReader(path)
    keys = {key: each for key, each in reader.fields.items() if not key.startswith("GGUF.")}
    assert {key: each.contents() for key, each in keys.items()} == {
        "general.type": "imatrix",
        "imatrix.datasets": ["a.txt", "ü"],
        "imatrix.chunk_count": 7,
        "imatrix.chunk_size": 512,
    }
    whole, text = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.STRING
    assert [each.types[-1] for each in keys.values()] == [text, text, whole, whole]
    shapes = {each.name: [int(size) for size in each.shape] for each in reader.tensors}
    assert list(shapes.items()) == [
        (f"{NAME}.in_sum2", [6, 1]),
        (f"{NAME}.counts", [1, 1]),
        (f"{STACK}.in_sum2", [5, 3]),
        (f"{STACK}.counts", [1, 3]),
    ]
    assert {each.tensor_type for each in reader.tensors} == {gguf.GGMLQuantizationType.F32}
    stored = {each.name: each.data for each in reader.tensors}
    for name, entry in entries.items():
        assert (stored[f"{name}.in_sum2"] == entry.sums.astype(np.float32)).all()
        assert (stored[f"{name}.counts"][:, 0] == entry.counts).all()


def test_what_is_written_is_read_again(tmp_path, entries):
    path = tmp_path / "x.gguf"
    with path.open("wb") as file:
        write_entries(file, entries, datasets=[], chunks=1, size=8)
    found = read_entries(path)
    assert found.keys() == entries.keys()
    for name, entry in entries.items():
        assert (found[name].sums == entry.sums.astype(np.float32)).all()
        assert (found[name].counts == entry.counts).all()
    assert is_imatrix(path)


def test_files_by_the_library_are_read_with_tensors_of_further_kinds(tmp_path):
    tensors = good(**{f"{NAME}.in_sum": sums(-1, 1), f"{STACK}.counts": sums(1, 2).T})
    tensors[f"{STACK}.in_sum2"] = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    found = read_entries(by_the_library(tmp_path / "x.gguf", tensors))
    assert found[NAME].sums.tolist() == [[1, 2]]
    assert found[STACK].sums.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found[STACK].counts.tolist() == [1, 2]


@pytest.mark.parametrize(
    "end", [b"", struct.pack("<i", 4), struct.pack("<ii", 4, 5) + b"a.txt"], ids=len
)
def test_the_older_kind_is_read_with_and_without_its_end(tmp_path, end):
    path = tmp_path / "x.dat"
    path.write_bytes(binary((NAME, 2, [2, 4]), (STACK, 0, [1, 2, 3]), end=end))
    found = read_entries(path)
    assert (found[NAME].sums / found[NAME].counts).tolist() == [[1, 2]]
    assert (found[STACK].sums / found[STACK].counts).tolist() == [[1, 2, 3]]
    assert not is_imatrix(path)


BAD_TENSORS = {
    "negative sums": (good(**{f"{NAME}.in_sum2": sums(1, -2)}), "below zero"),
    "NaN": (good(**{f"{NAME}.in_sum2": sums(1, np.nan)}), "NaN or infinity"),
    "infinite": (good(**{f"{NAME}.in_sum2": sums(1, np.inf)}), "NaN or infinity"),
    "negative counts": (good(**{f"{NAME}.counts": sums(-1)}), "below zero"),
    "counts of NaN": (good(**{f"{NAME}.counts": sums(np.nan)}), "NaN or infinity"),
    "no counts": (good(**{f"{NAME}.counts": None}), ".counts'"),
    "no sums": (good(**{f"{NAME}.in_sum2": None}), ".in_sum2'"),
    "too many counts": (good(**{f"{NAME}.counts": sums(1, 2, 3)}), "2 sums for 3 counts"),
    "no number": (good(**{f"{NAME}.in_sum2": np.zeros((1, 0), np.float32)}), "is empty"),
    "half": (good(**{f"{NAME}.counts": sums(1).astype(np.float16)}), "F16, not F32"),
    "weights of a model": ({NAME: sums(1, 2)}, "no entry"),
}


@pytest.mark.parametrize("kind", BAD_TENSORS)
def test_gguf_files_that_hold_no_importance_matrix_are_refused(tmp_path, kind):
    tensors, said = BAD_TENSORS[kind]
    with pytest.raises(BadInput) as refused:
        read_entries(by_the_library(tmp_path / "x.gguf", tensors))
    assert said in str(refused.value)
    assert "x.gguf" in str(refused.value)


def test_a_gguf_file_of_another_type_is_refused(tmp_path):
    path = by_the_library(tmp_path / "x.gguf", good(), kind="model")
    with pytest.raises(BadInput, match="of type 'model', not 'imatrix'"):
        read_entries(path)
    assert not is_imatrix(path)
    assert read_entries(by_the_library(tmp_path / "y.gguf", good(), kind=None))


BAD_BYTES = {
    "empty": b"",
    "three bytes": b"\1\0\0",
    "no entries": binary(),
    "fewer than none": struct.pack("<i", -1),
    "two billion entries": struct.pack("<i", 2**31 - 1),
    "a name of two billion bytes": struct.pack("<ii", 1, 2**31 - 1),
    "a name of fewer than none": struct.pack("<ii", 1, -1),
    "a name that is no text": binary((b"\xff", 1, [1])),
    "no values": binary((NAME, 1, [])),
    "two billion values": struct.pack("<iiii", 1, 0, 1, 2**31 - 1),
    "calls below zero": binary((NAME, -1, [1, 2])),
    "values below zero": binary((NAME, 1, [1, -2])),
    "NaN": binary((NAME, 1, [1, np.nan])),
    "twice": binary((NAME, 1, [1]), (NAME, 1, [1])),
    "more behind its end": binary((NAME, 1, [1]), end=struct.pack("<ii", 1, 0) + b"x"),
    "a web page": b"<!DOCTYPE html><html>" + b" " * 5000,
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "only GGUF": b"GGUF",
}


@pytest.mark.parametrize("kind", BAD_BYTES)
def test_bytes_that_are_none_are_refused_in_one_line(tmp_path, kind):
    path = tmp_path / "x.dat"
    path.write_bytes(BAD_BYTES[kind])
    with pytest.raises(BadInput) as refused:
        read_entries(path)
    assert "x.dat" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, entries, kind):
    content = io.BytesIO()
    write_entries(content, entries, datasets=["a"], chunks=1, size=8)
    old = binary((NAME, 2, [2, 4]), (STACK, 1, [1, 2, 3]))
    whole = content.getvalue() if kind == "gguf" else old
    path = tmp_path / "x"
    needed = len(whole) - (20 if kind == "gguf" else 0)  # the last tensor is padded
    for size in range(0, needed, 3):
        path.write_bytes(whole[:size])
        with pytest.raises(BadInput):
            read_entries(path)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BadInput, match="importance matrix"):
            read_entries(path)
        assert not is_imatrix(path)

"""JSON on disk: only what its standard has is read and written, and errors are one line."""

import json

import numpy as np
import pytest

from edgeq.errors import BadInput, EdgeqError
from edgeq.files.json_files import DEEPEST, json_bytes, read_json
from edgeq.words import as_text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": NaN}', "NaN is no number in JSON"),
        ('{"a": [1, -Infinity]}', "-Infinity is no number in JSON"),
        ('{"a": 1e999}', "1e999 is larger than any float"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ('{"a\\udfff": 1}', "half of a surrogate pair"),
        ('{"a": [{"b": "\\ud83dx"}]}', "half of a surrogate pair"),
        ('{"a": ' * (DEEPEST + 1) + "1" + "}" * (DEEPEST + 1), "levels deep"),
        ('{"a": ' + "[" * 400 + "]" * 400 + "}", "levels deep"),
        ("[" * 100_000, "levels deep"),
        (f'{{"a": {"9" * 5000}}}', "4300 digits"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
)
def test_what_could_not_be_written_again_is_not_read(tmp_path, content, words):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BadInput, match="cannot be read as JSON") as caught:
        read_json(tmp_path / "a.json")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"a": 1, "b": 2, "a": 3}', {"a": 3, "b": 2}),
        ('{"a": "\\ud83d\\ude00 \\\\ud800"}', {"a": "\U0001f600 \\ud800"}),
        (f'{{"a": {"9" * 4000}}}', {"a": 10**4000 - 1}),
        ('{"a": "' + "[{" * 500 + '\\""}', {"a": "[{" * 500 + '"'}),
        ('{"a": ' * DEEPEST + "1" + "}" * DEEPEST, None),
    ],
)
def test_odd_json_that_is_sound_is_read_as_it_stands(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(content)
    found = read_json(tmp_path / "a.json")
    assert found == (json.loads(content) if expected is None else expected)
    assert json.loads(json_bytes(found)) == found


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "\ud800"])
def test_what_json_has_not_is_not_written(value):
    with pytest.raises(EdgeqError, match="cannot be written as JSON"):
        json_bytes({"loss": [value]})


@pytest.mark.parametrize("name", ["a", "é\U0001f600", "a\udcff", "\ud800"])
def test_names_of_files_become_text(name):
    text = as_text(name)
    assert json.loads(json_bytes(text)) == text
    assert (text == name) == (name in ("a", "é\U0001f600"))

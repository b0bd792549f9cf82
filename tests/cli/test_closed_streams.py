"""Commands where whoever started them closed standard streams."""

import json
import os
import subprocess
import sys

import pytest

# Runs a command, and tells by a file what the first file that is opened then has for a number.
PROGRAM = """
import json, os, sys
from edgeq.commands.main import main
sys.argv = ["edgeq", "formats"]
try:
    main()
except SystemExit as stopped:
    with open(PATH, "w") as file:
        json.dump([stopped.code or 0, file.fileno()], file)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_and_no_file_gets_the_number_of_a_stream(tmp_path, closed):
    told = tmp_path / "told.json"
    program = PROGRAM.replace("PATH", repr(str(told)))
    command = ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, program]
    subprocess.run(command, check=True, env=os.environ, capture_output=True, timeout=60)
    status, number = json.loads(told.read_text())
    assert (status, number > 2) == (0, True)

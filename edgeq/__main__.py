"""Run the command line as `python -m edgeq`."""

from edgeq.commands.main import main

if __name__ == "__main__":
    main()

"""Where ``python -m moesearch.report`` begins."""

from moesearch.cli import run_command
from moesearch.report_cli import main

if __name__ == "__main__":
    run_command(main)

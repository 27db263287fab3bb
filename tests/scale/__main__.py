"""What bounds the number of workers: the figures of docs/scale.md. ``python -m tests.scale``

Training is a table without any computing, so all that is measured is the search around it: the loop, Optuna and
PostgreSQL, a server of Debian's binaries that is started for it and ends with it. The server and its clients share the
cores of one machine, so the figures are floors: a server with cores of its own serves more.
"""

from __future__ import annotations

import argparse
import os

import optuna

from tests.postgres import running_server
from tests.scale.load import print_loads, print_statements
from tests.scale.proxy import print_proxy
from tests.scale.stored import print_stored
from tests.search.stand_ins import MILESTONES

PARTS = ("statements", "loads", "stored", "proxy")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64], help="of the loads")
    parser.add_argument("--trials", type=int, default=256, help="of each load")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(
        f"{os.cpu_count()} cores, shared by the server and its clients; {MILESTONES} milestones a trial\n", flush=True
    )
    with running_server() as server:
        for part in args.parts or PARTS:
            match part:
                case "statements":
                    print_statements(server)
                case "loads":
                    print_loads(server, args.workers, args.trials)
                case "stored":
                    print_stored(server)
                case "proxy":
                    print_proxy(server)
                case unknown:
                    parser.error(f"{unknown} is none of {', '.join(PARTS)}")


if __name__ == "__main__":
    main()

"""Open one bundle at once by several processes and threads, on an empty cache each time, and count what fails.

python benchmarks/cold_opens.py mine/bundle --opens 200
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

OPENS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from tocom.runtime import Runtime
def open_one(number):
    with Runtime.open(sys.argv[1]) as runtime:
        runtime.backend.shares_weights or sys.exit("shares no weights")
with ThreadPoolExecutor(int(sys.argv[2])) as pool:
    list(pool.map(open_one, range(int(sys.argv[2]))))
"""
# Processes and threads of each, in turn.
ROUNDS = ((8, 1), (2, 4), (4, 2), (2, 1), (1, 8), (3, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--opens", type=int, default=200)
    options = parser.parse_args()
    done = failed = turn = 0
    while done < options.opens:
        processes, threads = ROUNDS[turn % len(ROUNDS)]
        turn += 1
        with tempfile.TemporaryDirectory() as cache:
            command = [sys.executable, "-c", OPENS, str(options.bundle), str(threads)]
            running = [
                subprocess.Popen(command, env={**os.environ, "TOCOM_CACHE": cache}, stderr=subprocess.PIPE, text=True)
                for _ in range(processes)
            ]
            for process in running:
                _, said = process.communicate(timeout=300)
                done += threads
                if process.returncode:
                    failed += 1
                    print(said, file=sys.stderr)
    print(f"{done} cold opens by up to 8 processes and 8 threads each: {failed} processes failed")


if __name__ == "__main__":
    main()

"""Run the op plugins' host harness on random cases; runs on both machines: harness_cases.py LIBRARY COUNT.

Prints a hash per case, over what went in and what came out: half of the cases match, half prune. In most of them ties
abound and every sum is exact; every tenth matches random numbers, where fused multiply-adds round otherwise and the
choice must stay the same.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "export" / "op_plugin"))

from host_kernels import HostKernels
from kernel_cases import MatchCase, match_case, prune_case

# Both algorithms of the selection: counting for all sizes, and the threshold search for all sizes.
LIMITS = (4096, 0)


def hashed(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.shape, array.dtype.str)).encode() + array.tobytes())
    return digest.hexdigest()


def main() -> None:
    kernels, count = HostKernels(Path(sys.argv[1])), int(sys.argv[2])
    rng = np.random.default_rng(16)
    for index in range(count):
        limit = LIMITS[index // 2 % 2]
        if index % 2:
            prune = prune_case(rng, most_tokens=120)
            kept, weight = kernels.prune(prune.score, prune.r, prune.prefix, prune.fuse, counting_limit=limit)
            print(hashed(prune.score, kept, weight))
            continue
        case = match_case(rng, most_tokens=40)
        if index % 10 == 0:
            case = MatchCase(rng.standard_normal(case.metric.shape).astype(np.float32), case.r, case.prefix)
        print(hashed(case.metric, kernels.match(case.metric, case.r, case.prefix, counting_limit=limit)))


if __name__ == "__main__":
    main()

"""Count the layers of one block of a compressed model, as TensorRT-RTX's parser makes them. Needs no GPU.

    python benchmarks/block_layers.py BUNDLE/degree-08.onnx [--op-plugin LIBRARY]

A block is what stands between one op plugin layer and the next: the MLP of one transformer block and the attention of
the next. Every layer is a launch at most; what TensorRT fuses of them an engine does not tell without a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

from tocom.export.engines.backend import find_backend, link_libraries
from tocom.export.op_plugin.library import build_library
from tocom.formats.onnx.summary import without_functions

LINKED = "TOCOM_BLOCK_LAYERS_LINKED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument(
        "--op-plugin", type=Path, help="a library built elsewhere; else one is built, or the cached one"
    )
    chosen = parser.parse_args()
    backend = find_backend("tensorrt-rtx")
    if LINKED not in os.environ:
        # The parser looks for its library by a name that must be there before the process starts.
        with tempfile.TemporaryDirectory(prefix="tocom-links-") as folder:
            environment = {**link_libraries(backend, Path(folder)), LINKED: "1"}
            sys.exit(os.spawnve(os.P_WAIT, sys.executable, [sys.executable, *sys.argv], environment))
    for library in backend.libraries:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    trt = importlib.import_module(backend.module)
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    op_plugin = chosen.op_plugin or build_library(architectures=[89]).path
    assert builder.get_plugin_registry().load_library(str(op_plugin)) is not None
    network = builder.create_network(0)
    reader = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert reader.parse(without_functions(chosen.onnx.read_bytes()), str(chosen.onnx)), reader.get_error(0)
    kinds = [network.get_layer(index).type.name for index in range(network.num_layers)]
    indices = [index for index, kind in enumerate(kinds) if kind == "PLUGIN_V3"]
    blocks = [Counter(kinds[begin:end]) for begin, end in pairwise(indices)]
    assert all(block == blocks[0] for block in blocks), "blocks differ"
    print(
        json.dumps(
            {
                "backend": f"{backend.name} {backend.version}",
                "file": chosen.onnx.name,
                "layers": len(kinds),
                "layers_per_block": blocks[0].total(),
                "per_block": dict(sorted(blocks[0].items())),
            }
        )
    )


if __name__ == "__main__":
    main()

"""A bundle as a Triton model repository: one model per degree, so that a client or an ensemble picks the degree.

    python examples/triton_layout.py BUNDLE REPOSITORY [--name vit]

Each degree becomes ``REPOSITORY/<name>-r<degree>/`` with ``config.pbtxt`` and version 1. A bundle with TensorRT engines
gives ``1/model.plan`` and the op plugin library beside them; start Triton with
``LD_PRELOAD=REPOSITORY/libtocom_op_plugin-<hash>.so`` then. Without engines it gives ``1/model.onnx`` for Triton's
ONNX Runtime backend, with the weights in one file that all degrees link to.

Triton runs the degrees, and nothing more: it has no latency budget. Choosing the degree stays with the caller, by
``choose`` and ``frontier`` of ``tocom.runtime``.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from tocom.bundle import WEIGHTS_NAME, Bundle

CONFIG = """\
name: "{name}"
platform: "{platform}"
max_batch_size: {largest}
input [ {{ name: "images" data_type: TYPE_FP32 dims: [ {dims} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {width} ] }} ]
parameters {{ key: "degree" value {{ string_value: "{degree}" }} }}
parameters {{ key: "token_counts" value {{ string_value: "{tokens}" }} }}
"""


def link(source: Path, target: Path) -> None:
    """Link where the file system can, copy where it cannot."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_repository(bundle: Bundle, repository: Path, name: str) -> list[str]:
    """Write the repository and return the models' names."""
    engines = {
        int(path.stem.removeprefix("degree-")): path
        for path in sorted(bundle.path.glob("engines/*/degree-*.engine"))
        if path.parent.name.startswith("tensorrt-") and not path.parent.name.startswith("tensorrt-rtx")
    }
    largest = bundle.batch[2]
    names = []
    for degree, entry in bundle.degrees.items():
        model = f"{name}-r{degree:02d}"
        version = repository / model / "1"
        version.mkdir(parents=True, exist_ok=True)
        if degree in engines:
            platform = "tensorrt_plan"
            link(engines[degree], version / "model.plan")
            for library in engines[degree].parent.glob("libtocom_op_plugin-*.so"):
                link(library, repository / library.name)
        else:
            platform = "onnxruntime_onnx"
            link(bundle.onnx_path(degree), version / "model.onnx")
            link(bundle.path / WEIGHTS_NAME, version / WEIGHTS_NAME)
        output = bundle.manifest["outputs"][0]
        config = CONFIG.format(
            name=model,
            platform=platform,
            largest=largest,
            dims=", ".join(map(str, bundle.image_shape)),
            output=output["name"],
            width=output["shape"][-1],
            degree=degree,
            tokens=" ".join(map(str, entry.token_counts)),
        )
        (repository / model / "config.pbtxt").write_text(config, encoding="utf-8")
        names.append(model)
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--name", default="vit")
    options = parser.parse_args()
    bundle = Bundle(options.bundle)
    bundle.verify()
    names = write_repository(bundle, options.repository, options.name)
    print(f"wrote {', '.join(names)} to {options.repository}")


if __name__ == "__main__":
    main()

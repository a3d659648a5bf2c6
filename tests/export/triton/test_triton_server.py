"""A real Triton server takes the repository as it is: configurations, labels, and the request that warms each model.

The server is the one in the wheel nvidia-pytriton (``pip install --no-deps nvidia-pytriton``), which has no ONNX
Runtime backend; a few lines of Python, which answer in its place, let it load the models.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from small_bundles import images_of, write_small_bundle

from tocom.export.triton.repository import write_triton_repository

START_SECONDS = 120
ANSWERING = """
import numpy, triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            images = triton.get_input_tensor_by_name(request, "images").as_numpy()
            logits = numpy.zeros((len(images), 5), numpy.float32)
            answers.append(triton.InferenceResponse([triton.Tensor("logits", logits)]))
        return answers
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small_bundle(tmp_path_factory.mktemp("bundle") / "bundle", labels=[f"class {n}" for n in range(5)])


@pytest.fixture(scope="module")
def grpc():
    return pytest.importorskip("tritonclient.grpc", reason="needs the extra tocom[triton]")


@pytest.fixture(scope="module")
def server(small, grpc, tmp_path_factory):
    """The address of a server with the bundle's repository, and what the server says."""
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        pytest.skip("needs the wheel nvidia-pytriton")
    wheel = Path(found.origin).parent
    stub = wheel / "tritonserver" / "python_backend_stubs" / f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not stub.is_dir():
        pytest.skip("the wheel nvidia-pytriton has no Python backend for this Python")
    folder = tmp_path_factory.mktemp("server")
    backends = folder / "backends"
    shutil.copytree(wheel / "tritonserver" / "backends" / "python", backends / "python")
    shutil.copy(stub / "triton_python_backend_stub", backends / "python")
    (backends / "python" / "triton_python_backend_stub").chmod(0o755)
    (backends / "onnxruntime").mkdir()
    (backends / "onnxruntime" / "model.py").write_text(ANSWERING)
    binary = shutil.copy(wheel / "tritonserver" / "bin" / "tritonserver", folder)
    Path(binary).chmod(0o755)
    write_triton_repository(small.path, folder / "repository", name="vit")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    libraries = [str(sysconfig.get_config_var("LIBDIR")), str(wheel.parent / "nvidia_pytriton.libs")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        # The Python backend takes the first Python here, and its packages.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONHOME": sys.base_prefix,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    log = folder / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                binary,
                f"--model-repository={folder / 'repository'}",
                "--disable-auto-complete-config",
                f"--backend-directory={backends}",
                f"--grpc-port={port}",
                "--grpc-address=127.0.0.1",
                "--allow-http=0",
                "--allow-metrics=0",
            ],
            stdout=stream,
            stderr=stream,
            env=environment,
        )
    address = f"127.0.0.1:{port}"
    try:
        _wait(process, grpc, address, log)
        yield address, log
    finally:
        process.terminate()
        process.wait(60)


def _wait(process, grpc, address, log):
    client = grpc.InferenceServerClient(address)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text(errors="replace")[-4000:]
        try:
            if client.is_server_ready():
                return
        except grpc.InferenceServerException:
            pass  # not there yet
        time.sleep(0.2)
    pytest.fail(log.read_text(errors="replace")[-4000:])


def test_the_server_takes_every_configuration_as_it_is(server, grpc):
    address, log = server
    client = grpc.InferenceServerClient(address)
    for degree in (0, 4, 8):
        config = client.get_model_config(f"vit-r{degree:02d}").config
        assert config.parameters["degree"].string_value == str(degree)
        assert (config.max_batch_size, list(config.input[0].dims)) == (4, [3, 8, 8])
        assert (list(config.output[0].dims), config.output[0].label_filename) == ([5], "labels.txt")
        assert not config.HasField("dynamic_batching")
        told = client.get_model_metadata(f"vit-r{degree:02d}")
        assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [("images", "FP32", [-1, 3, 8, 8])]
        # Loading has warmed it with the largest batch of zeros.
        counted = client.get_inference_statistics(f"vit-r{degree:02d}").model_stats[0]
        assert (counted.inference_count, counted.execution_count) == (4, 1)
    many = grpc.InferInput("images", [5, 3, 8, 8], "FP32")
    many.set_data_from_numpy(images_of(5))
    with pytest.raises(grpc.InferenceServerException, match=r"batch-size must be <= 4"):
        client.infer("vit-r00", [many])
    said = log.read_text(errors="replace")
    assert [line for line in re.findall(r"^[WE]\d.*$", said, re.MULTILINE) if "vit-r" in line or "warm" in line] == []

"""A server that speaks Triton's gRPC protocol and runs the ONNX files of a model repository, as its clients see it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, repository: Path, slower: Mapping[str, float]) -> None:
        self.asked: list[str] = []
        self._slower = slower
        self._sessions = {
            file.parents[1].name: onnxruntime.InferenceSession(file) for file in repository.glob("*/1/model.onnx")
        }

    def ModelReady(self, request, context):
        return service_pb2.ModelReadyResponse(ready=request.name in self._sessions)

    def ModelInfer(self, request, context):
        self.asked.append(request.model_name)
        session, (tensor,) = self._sessions[request.model_name], request.inputs
        images = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(tensor.shape)
        values = session.run(None, {tensor.name: images})
        time.sleep(self._slower.get(request.model_name, 0.0))
        outputs = [
            service_pb2.ModelInferResponse.InferOutputTensor(name=output.name, datatype="FP32", shape=value.shape)
            for output, value in zip(session.get_outputs(), values, strict=True)
        ]
        return service_pb2.ModelInferResponse(
            model_name=request.model_name, outputs=outputs, raw_output_contents=[value.tobytes() for value in values]
        )


def serve(repository: Path, slower: Mapping[str, float]) -> tuple[grpc.Server, str, Servicer]:
    """Start it; return the server, its address, and what was asked of it.

    ``slower``: Seconds that an answer takes longer, by model: tiny ones all take the same, whatever their degree.
    """
    servicer = Servicer(repository, slower)
    server = grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}", servicer

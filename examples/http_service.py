"""A picture's bytes in, its classes out, within the budget that the request names: a service of forty lines.

    python examples/http_service.py mine/bundle --port 8080
    curl --data-binary @part.jpg -H "X-Budget-Ms: 20" http://localhost:8080/

A budget that no degree meets, and a device that fails, are 503; bytes that are not a picture, a wrong budget: 400.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tocom.errors import BudgetError, DataError, EngineError
from tocom.runtime import Runtime

MOST_BYTES = 20 << 20


class Handler(BaseHTTPRequestHandler):
    runtime: Runtime

    def do_POST(self) -> None:
        content: dict[str, object]
        try:
            size = min(max(int(self.headers.get("Content-Length", 0)), 0), MOST_BYTES)
            images = self.runtime.preprocess(self.rfile.read(size))
            result = self.runtime.infer(images, float(self.headers.get("X-Budget-Ms", "inf")))
            top = [{"class": c.index, "label": c.label, "probability": c.probability} for c in result.top(5)]
            code, content = 200, {"top": top, "degree": result.degree, "latency_ms": result.latency_ms}
        except (BudgetError, EngineError) as error:
            code, content = 503, {"error": str(error)}
        except (DataError, ValueError) as error:
            code, content = 400, {"error": str(error)}
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    with Runtime.open(options.bundle, on_infeasible="raise") as Handler.runtime:
        server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
        print(f"serving on port {server.server_port}", flush=True)
        server.serve_forever()

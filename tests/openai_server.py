"""OpenAI-compatible endpoints for the tests: the real `transformers serve`, and one that fails on request.

`FaultyEndpoint` has no model. It is there for failure injection only: refused keys, rate limits, errors, slow and
malformed answers, which a healthy server does not give.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def transformers_serve(model_path, log_path, timeout: float = 180.0):
    """Run `transformers serve <model_path>` on a free loopback port; yield its base URL."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model_path)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with open(log_path, "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            deadline = time.monotonic() + timeout
            while not _is_healthy(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    tail = Path(log_path).read_text()[-3000:]
                    raise RuntimeError(f"`transformers serve` did not start (exit code {server.poll()}):\n{tail}")
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def chat_answer(text, usage: dict | None = None) -> dict:
    message = {"role": "assistant", "content": text}
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return {**answer, "choices": [{"index": 0, "finish_reason": "stop", "message": message}], "usage": usage}


class FaultyEndpoint:
    """A loopback endpoint whose every answer is `respond(number, body)`: `(status, payload)`.

    A payload is a dict, a str (sent as HTML) or bytes (sent as JSON, whatever they are).
    `requests` holds `(time, path, body)` of each request in the order of arrival, `peak` the most that were in flight.
    """

    def __init__(self, respond):
        self.requests, self.peak, self._active = [], 0, 0
        lock, endpoint = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(endpoint.requests)
                    endpoint.requests.append((time.monotonic(), self.path, body))
                    endpoint._active += 1
                    endpoint.peak = max(endpoint.peak, endpoint._active)
                status, payload = respond(number, body)
                with lock:
                    endpoint._active -= 1
                data = payload
                if not isinstance(payload, bytes):
                    data = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "text/html" if isinstance(payload, str) else "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client has given up waiting

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()

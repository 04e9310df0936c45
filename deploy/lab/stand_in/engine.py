#!/usr/bin/python3
"""A stand-in for a serving engine: a real HTTP server with /health, /v1/models and /v1/completions, and no model behind it.

stand-in-engine PLATFORM --port PORT [--die-after SECONDS]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server does; the text says that nobody computed it."""

    def reply(self, code: int, body: object) -> None:
        """One JSON answer."""
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """Health and models."""
        if self.path == "/health":
            self.reply(200, {})
        elif self.path == "/v1/models":
            self.reply(200, {"data": [{"id": "stand-in"}]})
        else:
            self.reply(404, {"error": "no such path"})

    def do_POST(self) -> None:
        """A completion of as many words as were asked for."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        tokens = int(asked.get("max_tokens", 16))
        self.reply(
            200,
            {
                "choices": [{"text": " stand-in" * tokens}],
                "usage": {"prompt_tokens": len(str(asked.get("prompt", "")).split()), "completion_tokens": tokens},
            },
        )

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def main() -> None:
    """Serve until SIGTERM, or until the simulated death."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("platform")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--die-after", type=float)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if options.die_after is not None:

        def die() -> None:
            print("engine: out of memory while loading weights (planted)", flush=True)
            os._exit(1)

        threading.Timer(options.die_after, die).start()
    print(f"engine: stand-in for {options.platform}, listening on {options.port}", flush=True)
    ThreadingHTTPServer(("", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()

"""A small real HTTP engine to put under supervision: /health, /v1/models, /v1/completions.

python openai_engine.py PORT [--healthy-when FILE] [--die-when FILE CODE] [--no-api] [--refuse-completions]
                             [--ignore-term] [--orphan]

FILEs are made by the test once what it waits for has been seen; the engine leaves got-SIGTERM and orphan.pid for it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("port", type=int)
parser.add_argument("--healthy-when", type=Path, default=Path("/"))
parser.add_argument("--die-when", nargs=2, default=None)
parser.add_argument("--no-api", action="store_true")
parser.add_argument("--refuse-completions", action="store_true")
parser.add_argument("--ignore-term", action="store_true")
parser.add_argument("--orphan", action="store_true")
options = parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    def reply(self, code: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.reply(200 if options.healthy_when.exists() else 503, {})
        elif self.path == "/v1/models" and not options.no_api:
            self.reply(200, {"data": [{"id": "tiny"}]})
        else:
            self.reply(404, {"error": "no such path"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if options.refuse_completions:
            self.reply(500, {"error": "the kernel exploded"})
            return
        self.reply(
            200,
            {
                "choices": [{"text": " is " * body["max_tokens"]}],
                "usage": {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]},
            },
        )

    def log_message(self, *_arguments: object) -> None:
        """Quiet."""


def stop(number: int, _frame: object) -> None:
    name = signal.Signals(number).name
    print(f"engine: got {name}", flush=True)
    Path(f"got-{name}").touch()
    if not options.ignore_term:
        os._exit(0)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
if options.orphan:
    # a child that starts a grandchild and leaves: the grandchild goes to whoever adopts orphans
    code = "import subprocess; print(subprocess.Popen(['sleep', '600'], stdout=-3, stderr=-3).pid, end='')"
    pid = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    Path("orphan.pid").write_text(pid)
server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
print("engine: listening", flush=True)
if options.die_when:
    sign, code = Path(options.die_when[0]), int(options.die_when[1])

    def die() -> None:
        while not sign.exists():
            time.sleep(0.02)
        print("engine: out of memory while loading weights", flush=True)
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)

    threading.Thread(target=die, daemon=True).start()
server.serve_forever()

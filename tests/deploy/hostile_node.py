#!/usr/bin/env python3
"""The Python of a node that was taken over: runs what the controller sends, or not, and answers what it likes.

Whatever a node may return comes back with facts named like the controller's variables, with templates and escape sequences.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).with_name("target")
"""A file that only a command or a template on the controller could make."""
TEMPLATE = "{{ lookup('ansible.builtin.pipe', 'touch " + str(TARGET) + "') }}{{ 7 * 191 }}"
ESCAPES = "\x1b]0;owned\x07\x1b[2Jgone\r\x00"
FACTS = {
    "attnkit_drain_command": ["touch", str(TARGET)],
    "attnkit_serve_command": ["touch", str(TARGET)],
    "attnkit_drain_tasks": str(TARGET.with_name("tasks.yml")),
    "attnkit_hooked": True,
    "attnkit_page": str(TARGET),
    "attnkit_state_dir": str(TARGET.with_name("elsewhere")),
    "attnkit_secret_env": {"TOKEN": TEMPLATE},
    "ansible_connection": "local",
    "attnkit": {"node_type": TEMPLATE, "platform": "cpu", "why": TEMPLATE + ESCAPES, "driver": TEMPLATE, "detection": {}},
}
SUMMARY = {
    "node_type": TEMPLATE, "backend": "CPU_ATTN" + ESCAPES, "verdict": TEMPLATE, "boot_seconds": TEMPLATE, "tokens_per_s": 1.0,
    "created": TEMPLATE, "fallbacks": [TEMPLATE + ESCAPES], "driver": "<script>alert(1)</script>",
}  # fmt: skip
ANSWERS = {
    "docker_image_pull": {"changed": False},
    "docker_container": {"changed": True},
    "attnkit_preflight": {"findings": [{"check": "disk" + ESCAPES, "ok": True, "detail": TEMPLATE}]},
    "attnkit_devices": {"groups": []},
    "attnkit_watch": {"changed": False},
    "attnkit_gate": {
        "ok": True, "reason": TEMPLATE + ESCAPES, "summary": SUMMARY, "completion": {"text": TEMPLATE},
        "log_tail": [TEMPLATE + ESCAPES],
    },
}  # fmt: skip

code = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
sent = code + b"".join(Path(a).read_bytes() for a in sys.argv[1:] if a.endswith(".py"))
asked = re.search(rb"module_fqn='[\w.]*\.(\w+)'", sent)
name = asked[1].decode() if asked else ""
done = subprocess.run([sys.executable, *sys.argv[1:]], input=code, capture_output=True, check=False)
try:
    answer = json.loads(done.stdout)
except ValueError:
    answer = {}
    if not asked:
        sys.stdout.buffer.write(done.stdout)
        sys.exit(done.returncode)
answer = ANSWERS.get(name, answer)
answer.setdefault("ansible_facts", {}).update(FACTS)
answer["warnings"] = [TEMPLATE, "Removed unexpected key" + ESCAPES]
print(json.dumps({"changed": False, **answer}))

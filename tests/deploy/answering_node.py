#!/usr/bin/env python3
"""The Python of a node without Docker: runs what the controller sends, but for the modules that answers.json beside it answers.

answers.json: module -> its result, or a list of results, one a call, the last one for all that follow.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

FILE = Path(__file__).with_name("answers.json")

code = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
sent = code + b"".join(Path(a).read_bytes() for a in sys.argv[1:] if a.endswith(".py"))
asked = re.search(rb"module_fqn='[\w.]*\.(\w+)'", sent)
answers = json.loads(FILE.read_text(encoding="utf-8"))
name = asked[1].decode() if asked else ""
if name not in answers:
    sys.exit(subprocess.run([sys.executable, *sys.argv[1:]], input=code, check=False).returncode)
answer = answers[name]
if isinstance(answer, list):
    answer, *answers[name] = answer if len(answer) > 1 else answer * 2
    FILE.write_text(json.dumps(answers), encoding="utf-8")
print(json.dumps({"changed": False, **answer}))

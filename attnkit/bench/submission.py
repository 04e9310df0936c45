"""A submission report about a GPU: what was found, checked and timed. Nothing else of the machine."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from attnkit import __version__
from attnkit.bench import run, turing
from attnkit.hardware import detect


def write(file: Path) -> None:
    """Run the GPU's benchmark (Turing's on sm_75) and write its report, with the devices and their drivers, to `file`.

    The file can go into docs/reports as it is: its kind is that of the benchmark. Host names and paths are left out.

    Raises:
        SystemExit: no GPU that can be measured (exit code 3).
    """
    found = detect()
    is_turing = any(device.arch == "sm_75" and device.usable for device in found.devices)
    with tempfile.TemporaryDirectory() as folder:
        if is_turing:
            turing.main(["--sweep", "--out", folder])
        else:
            run.require_gpu()
            run.main(run.Options(Path(folder), command="attnkit bench --submit FILE"))
        report = next(Path(folder).glob("*.json"))
        document = json.loads(report.read_text(encoding="utf-8"))
    document["attnkit_version"] = __version__
    document["devices"] = [asdict(device) for device in found.devices]
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {file}: attach it to an issue")

"""Controller side of attnkit_facts: ships the detection code, then matches the node type with the profiles installed here."""

from __future__ import annotations

import base64
import dataclasses
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.attnkit.fleet.plugins.plugin_utils.trust import refuse_injected_facts

try:
    import attnkit
    from attnkit import profiles
    from attnkit.errors import AttnkitError
    from attnkit.hardware.device import Detection, Device, ProbeResult
except ImportError as missing:
    raise AnsibleActionFail(
        f"attnkit is not installed for the Python that runs Ansible ({missing}); install it there: pip install attnkit"
    ) from missing

# All that detection needs: plain data, guarded probes and the errors. None of it imports anything outside the standard library.
_SHIPPED = ("__init__.py", "errors.py", "hardware")


def build_payload(package: Path) -> bytes:
    """A zip archive with the part of attnkit that detects hardware, importable as it is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _SHIPPED:
            source = package / name
            files = sorted(p for p in source.rglob("*") if p.is_file()) if source.is_dir() else [source]
            for path in files:
                if "__pycache__" not in path.parts:
                    # A fixed date: the same code gives the same archive.
                    info = zipfile.ZipInfo(str(Path("attnkit") / path.relative_to(package)), (2026, 1, 1, 0, 0, 0))
                    archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def as_detection(raw: Mapping[str, Any]) -> Detection:
    """The detection that a node sent as JSON, as attnkit's own type again."""

    def device(fields: Mapping[str, Any]) -> Device:
        given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        return Device(**given)

    return Detection(
        devices=tuple(device(d) for d in raw["devices"]),
        probes=tuple(
            ProbeResult(p["probe"], tuple(device(d) for d in p["devices"]), p["error"], tuple(p["notes"]))
            for p in raw["probes"]
        ),
        root=raw["root"],
        visibility=dict(raw.get("visibility") or {}),
        visibility_notes=tuple(raw.get("visibility_notes") or ()),
        ambiguous=raw.get("ambiguous"),
        host=dict(raw["host"]),
    )


def classify(raw: Mapping[str, Any], given: str | None) -> dict[str, Any]:
    """The fact `attnkit` of one node.

    Args:
        raw: the detection as the node sent it.
        given: node type stated in the inventory; it wins over what is detected and the fact shows both.

    Raises:
        UsageError: `given` names no profile.
    """
    detection = as_detection(raw)
    match = profiles.match_node(detection) if detection.devices else None
    found = match.node if match else None
    why = match.why if match else f"no device was detected under {detection.root}, not even a CPU"
    device = match.device if match else None
    name = given or found
    node = profiles.load_node(name) if name else None
    return {
        "node_type": name,
        "node_type_source": "given" if given else "detected" if name else None,
        "detected_node_type": found,
        "platform": node.platform if node else None,
        "vendor": device.vendor if device else None,
        "device": device.name if device else None,
        "driver": device.driver if device else None,
        "why": f"given in the inventory; detection says {found or 'nothing that a profile knows'}" if given else why,
        "candidates": [dataclasses.asdict(candidate) for candidate in match.candidates] if match else [],
        "detection": dict(raw),
    }


class ActionModule(ActionBase):
    """Ships the code, runs the module, matches the profile."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """The module's result with `ansible_facts.attnkit` in it."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        refuse_injected_facts()
        args = dict(self._task.args)
        args["payload"] = base64.b64encode(build_payload(Path(attnkit.__file__).parent)).decode()
        answer = self._execute_module(module_name="attnkit.fleet.attnkit_facts", module_args=args, task_vars=task_vars)
        raw = answer.pop("detection", None)
        answer.get("invocation", {}).get("module_args", {}).pop("payload", None)
        result.update(answer)
        if raw is None:
            return result
        try:
            facts = classify(raw, args.get("node_type") or None)
        except AttnkitError as error:
            return {**result, "failed": True, "msg": f"node_type: {error}"}
        result["ansible_facts"] = {"attnkit": facts}
        require_known = args.get("require_known", True)
        if facts["node_type"] is None and str(require_known).lower() not in ("false", "no", "0"):
            result.update(
                failed=True,
                msg=f"unknown hardware: {facts['why']}. Add a profile for it, or set attnkit_node_type for this host.",
            )
        return result

"""Writes the Kubernetes manifests, or with --check says which of them are stale.

    python deploy/kubernetes/generate.py                                       the committed example
    python deploy/kubernetes/generate.py --variables my.yml --out my-cluster   your images, command and environment

Nothing is listed here that is listed elsewhere: node types come from profiles/, PCI ids from attnkit.hardware, platforms from
images/platforms.yaml, the probe from images/Dockerfile, images and command from an inventory's group variables.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from attnkit import profiles
from attnkit.hardware import ids, other
from attnkit.hardware.device import Detection, Device, Vendor
from attnkit.jsonio import RUN_DIRECTORY

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
EXAMPLE = ROOT / "deploy" / "inventories" / "example" / "group_vars" / "attnkit.yml"
ROLE = ROOT / "deploy" / "ansible_collections" / "attnkit" / "fleet" / "roles" / "common"
FEATURES = "/etc/kubernetes/node-feature-discovery/features.d"
"""Where NFD's worker reads features of others from."""
METRICS_PORT = 9400
START_SECONDS = 900
RESOURCES: dict[str, dict[str, int]] = {
    "cuda-ampere": {"nvidia.com/gpu": 1},
    "cuda-turing": {"nvidia.com/gpu": 1},
    "rocm": {"amd.com/gpu": 1},
    "xpu": {"gpu.intel.com/i915": 1},
    "tpu": {"google.com/tpu": 4},
    "ipex": {},
    "cpu": {},
}
"""What each platform's pod requests from its vendor's device plugin. A TPU host's chips can only be requested together."""
VENDORS: dict[str, Vendor] = {ids.NVIDIA: "nvidia", ids.AMD: "amd", ids.INTEL: "intel", ids.GOOGLE: "google"}
CLASSES = ["0300", "0302", "0380", "1200"]
LABEL_PLATFORM, LABEL_TYPE = "attnkit.io/platform", "attnkit.io/node-type"


def pci_ids_by_type() -> dict[str, list[tuple[str, str, str | None]]]:
    """Node type -> (vendor, device, subsystem) of every known product that attnkit's own matching gives that type."""
    found: dict[str, set[tuple[str, str, str | None]]] = {}
    for key, known in ids.known_ids().items():
        vendor, device, *detail = key.split(":")
        name = VENDORS[vendor]
        card = Device(
            name,
            "tpu" if name == "google" else "gpu",
            known.name,
            known.arch,
            pci_id=f"{vendor}:{device}",
            features=known.features,
        )
        node = profiles.match_node(Detection(devices=(card,), probes=())).node
        if node is not None:
            # NFD knows the subsystem, which tells TPUs apart, and not the revision.
            found.setdefault(node, set()).add((vendor, device, detail[0] if detail and vendor == ids.GOOGLE else None))
    return {node: sorted(cards, key=str) for node, cards in sorted(found.items())}


def rules() -> dict[str, Any]:
    """The NodeFeatureRule that gives nodes their type and platform: accelerators first, then CPU-only machines."""
    listed = []
    for node, cards in pci_ids_by_type().items():
        groups: dict[tuple[str, str | None], list[str]] = {}
        for vendor, device, subsystem in cards:
            groups.setdefault((vendor, subsystem), []).append(device)
        terms = []
        for (vendor, subsystem), devices in groups.items():
            expressions = {"vendor": _is([vendor]), "device": _is(devices)}
            if subsystem:
                expressions["subsystem_device"] = _is([subsystem])
            terms.append({"matchFeatures": [{"feature": "pci.device", "matchExpressions": expressions}]})
        listed.append({"name": node, "labels": _labels(node), "matchAny": terms})
    vendors = sorted({ids.NVIDIA, ids.GOOGLE, *(vendor for vendor, maker in other.MAKERS.items() if maker.classes)})
    classes = _is([*CLASSES, "ff00"])
    displays = {"op": "NotIn", "value": list(ids.integrated_ids(ids.AMD))}
    accelerators = [
        {"vendor": _is(vendors), "class": classes},
        {"vendor": _is([ids.AMD]), "device": displays, "class": classes},
    ]
    listed.append(
        {
            # Hardware that no profile describes is a clear no: its CPU does not serve in its place.
            "name": "an accelerator",
            "vars": {"attnkit-accelerator": "true"},
            "matchAny": [{"matchFeatures": [{"feature": "pci.device", "matchExpressions": each}]} for each in accelerators],
        }
    )
    nothing = {"op": "DoesNotExist"}
    for profile in sorted(_cpus(), key=lambda p: len(p.match.any_feature) or len(profiles.all_nodes())):
        match: list[dict[str, Any]] = [
            {"feature": "rule.matched", "matchExpressions": {LABEL_PLATFORM: nothing, "attnkit-accelerator": nothing}}
        ]
        term: dict[str, Any] = {"name": profile.name, "labels": _labels(profile.name), "matchFeatures": match}
        if profile.match.name:
            match.append({"feature": "cpu.model", "matchExpressions": {"vendor_id": _is([profile.match.name])}})
        if profile.match.any_feature:
            flags = [flag.upper().replace("_", "") for flag in profile.match.any_feature]
            term["matchAny"] = [
                {"matchFeatures": [{"feature": "cpu.cpuid", "matchExpressions": {flag: {"op": "Exists"}}}]} for flag in flags
            ]
        listed.append(term)
    return {
        "apiVersion": "nfd.k8s-sigs.io/v1alpha1",
        "kind": "NodeFeatureRule",
        "metadata": {"name": "attnkit"},
        "spec": {"rules": listed},
    }


def _cpus() -> Iterable[profiles.NodeProfile]:
    """CPU node types that NFD can tell apart; whose machine an Arm processor is in, it does not say."""
    cpus = (profile for profile in profiles.all_nodes() if profile.match.vendor == "cpu")
    return (profile for profile in cpus if "x86_64" in profile.match.arch)


def _labels(node: str) -> dict[str, str]:
    return {LABEL_TYPE: node, LABEL_PLATFORM: profiles.load_node(node).platform}


def _is(values: list[str]) -> dict[str, Any]:
    return {"op": "In", "value": values}


def probe_command() -> list[str]:
    """The image's own health check: it reads the readiness file."""
    text = (ROOT / "images" / "Dockerfile").read_text(encoding="utf-8")
    found = re.search(r"^HEALTHCHECK [^\[]*CMD (\[.*\])$", text, re.MULTILINE)
    if found is None:
        raise SystemExit("images/Dockerfile: no HEALTHCHECK with a command in brackets; the probes are made from it")
    command: list[str] = json.loads(found[1])
    return command


def daemon_set(platform: str, variables: dict[str, Any]) -> dict[str, Any]:
    """The service of one platform, a pod on every node of it.

    Args:
        platform: a name of images/platforms.yaml.
        variables: `attnkit_images`, `attnkit_command`, `attnkit_commands`, `attnkit_env`, `attnkit_port` as in an inventory.
    """
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text(encoding="utf-8"))
    uid = yaml.safe_load((ROLE / "vars" / "main.yml").read_text(encoding="utf-8"))["attnkit_uid"]
    given = {**defaults, **variables}
    image = given["attnkit_images"].get(platform)
    if image is None:
        raise SystemExit(
            f"attnkit_images: no image for {platform}; there are {', '.join(sorted(given['attnkit_images'])) or 'none'}"
        )
    command = given.get("attnkit_commands", {}).get(platform, given["attnkit_command"])
    name, app = f"attnkit-{platform}", {"app.kubernetes.io/name": "attnkit", LABEL_PLATFORM: platform}
    resources = RESOURCES[platform]
    confined = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    probe = {"exec": {"command": probe_command()}, "periodSeconds": 5, "timeoutSeconds": 3}
    service = {
        "name": "attnkit",
        "image": image,
        "args": ["--", *command] if command else [],
        "env": [{"name": key, "value": str(value)} for key, value in sorted(given["attnkit_env"].items())],
        "ports": [{"name": "http", "containerPort": given["attnkit_port"]}],
        "resources": {"limits": dict(resources)} if resources else {"requests": {"cpu": "4", "memory": "16Gi"}},
        "startupProbe": {**probe, "failureThreshold": START_SECONDS // 5},
        "readinessProbe": {**probe, "failureThreshold": 3},
        "securityContext": {**confined, "runAsNonRoot": True, "runAsUser": uid, "runAsGroup": 0},
        "volumeMounts": [
            {"name": "run", "mountPath": str(RUN_DIRECTORY)},
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "models", "mountPath": "/models", "readOnly": True},
        ],
    }
    beside = {
        "name": "publish",
        "image": image,
        "command": ["python3", "-m", "attnkit.publish"],
        "args": ["--port", str(METRICS_PORT), "--features", "/features.d/attnkit"],
        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        # NFD's folder on the host belongs to root, so this one container is UID 0: without any capability, and with nothing of
        # the host but that folder.
        "securityContext": {**confined, "runAsUser": 0, "runAsGroup": 0},
        "volumeMounts": [
            {"name": "run", "mountPath": str(RUN_DIRECTORY), "readOnly": True},
            {"name": "features", "mountPath": "/features.d"},
        ],
    }
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": {LABEL_PLATFORM: platform},
        "tolerations": [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in resources],
        "terminationGracePeriodSeconds": 60,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "fsGroup": 0},
        "containers": [service, beside],
        "volumes": [
            {"name": "run", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
            {"name": "models", "hostPath": {"path": "/var/lib/attnkit/models", "type": "DirectoryOrCreate"}},
            {"name": "features", "hostPath": {"path": FEATURES, "type": "DirectoryOrCreate"}},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": "attnkit", "labels": app},
        "spec": {
            "selector": {"matchLabels": app},
            # A node whose self-test fails is never ready, so the rollout stops at the first of them.
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {
                "metadata": {
                    "labels": app,
                    "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": str(METRICS_PORT)},
                },
                "spec": pod,
            },
        },
    }


def namespace() -> dict[str, Any]:
    """The namespace. Host folders are outside what the stricter pod security levels allow."""
    labels = {f"pod-security.kubernetes.io/{mode}": "privileged" for mode in ("enforce", "audit", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "attnkit", "labels": labels}}


class _Dumper(yaml.SafeDumper):
    """YAML without references, and with lists indented below their key."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


_TYPED = re.compile(r"[-+]?[.]?[0-9].*|[-+]?[.](inf|nan)|~|null|true|false|yes|no|on|off|y|n|=|<<", re.IGNORECASE)
"""Texts that some reader of YAML takes for something else: 1e07 is a number for YAML 1.2 and for Go, and a text for PyYAML."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if _TYPED.fullmatch(text) else None)


_Dumper.add_representer(str, _represent_text)


def dump(document: dict[str, Any]) -> str:
    """One manifest."""
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120, default_flow_style=False)
    return f"# Generated by deploy/kubernetes/generate.py.\n---\n{text}"


def manifests(variables: dict[str, Any], platforms: list[str]) -> dict[str, str]:
    """Every file's name and text."""
    files = {"namespace.yaml": dump(namespace()), "node-types.yaml": dump(rules())}
    return files | {f"{platform}.yaml": dump(daemon_set(platform, variables)) for platform in platforms}


def read_variables(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The group variables of an inventory, and what is wrong with them, a line each with file, line and variable."""
    try:
        text = path.read_text(encoding="utf-8")
        found, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        return {}, [f"{path}: {error}"]
    if not isinstance(found, dict) or node is None:
        return {}, [f"{path}: must be a mapping of variables, as group_vars/attnkit.yml of an inventory is"]

    def where(place: tuple[str, ...]) -> str:
        inner, line = node, 0
        for part in place:
            if isinstance(inner, yaml.MappingNode):
                key, inner = next((pair for pair in inner.value if pair[0].value == part), (inner, inner))
                line = key.start_mark.line + 1
            elif isinstance(inner, yaml.SequenceNode) and part.isdecimal() and int(part) < len(inner.value):
                inner = inner.value[int(part)]
                line = inner.start_mark.line + 1
        return f"{path}:{line}"

    # The same model as the playbooks'; the collection is found where Ansible finds it.
    sys.path.append(str(ROOT / "deploy"))
    variables = importlib.import_module("ansible_collections.attnkit.fleet.plugins.module_utils.variables")
    plain = {name: value for name, value in found.items() if "{{" not in str(value)}  # templates are Ansible's to evaluate
    return found, [str(problem) for problem in variables.check(plain, where)]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variables", type=Path, default=EXAMPLE, help="group variables of an inventory (default: the example's)"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="where to write (default: beside this program)")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a file is stale")
    options = parser.parse_args()
    variables, problems = read_variables(options.variables)
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 2
    # An inventory of your own needs no image for platforms that you do not have.
    known = yaml.safe_load((ROOT / "images" / "platforms.yaml").read_text(encoding="utf-8"))
    platforms = [p for p in known if options.variables == EXAMPLE or p in variables.get("attnkit_images", {})]
    files = manifests(variables, platforms)
    stale = [n for n, text in files.items() if not (options.out / n).exists() or (options.out / n).read_text("utf-8") != text]
    if options.check:
        for name in stale:
            print(f"{options.out / name} is stale: run {Path(__file__).name}", file=sys.stderr)
        return 1 if stale else 0
    options.out.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (options.out / name).write_text(files[name], encoding="utf-8")
        print(options.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())

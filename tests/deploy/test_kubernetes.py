"""The Kubernetes manifests: generated, current, valid by the API's own schemas, confined, and matching what attnkit detects."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from attnkit import profiles
from attnkit.hardware import ids
from attnkit.hardware.device import Detection, Device
from deploy.kubernetes import generate

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
PLATFORMS = sorted(yaml.safe_load((ROOT / "images" / "platforms.yaml").read_text(encoding="utf-8")))
VERSIONS = ("1.31", "1.37")


def _manifest(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return document


def _pod(platform: str) -> dict[str, Any]:
    pod: dict[str, Any] = _manifest(platform)["spec"]["template"]["spec"]
    return pod


def test_they_are_what_the_generator_writes() -> None:
    variables = yaml.safe_load(generate.EXAMPLE.read_text(encoding="utf-8"))
    files = generate.manifests(variables, PLATFORMS)
    assert {p.name for p in FOLDER.glob("*.yaml")} == set(files)
    assert [name for name, text in files.items() if (FOLDER / name).read_text(encoding="utf-8") != text] == []
    assert set(generate.RESOURCES) == set(PLATFORMS)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["namespace", *PLATFORMS])
def test_the_api_takes_them(name: str, version: str) -> None:
    kubernetes_validate.validate(_manifest(name), version, strict=True)


def test_the_validation_can_fail() -> None:
    wrong = _manifest("cpu")
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_confinement(platform: str) -> None:
    pod = _pod(platform)
    service, beside = pod["containers"]
    for container in (service, beside):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True and context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context
    assert service["securityContext"]["runAsNonRoot"] is True and service["securityContext"]["runAsUser"] == 10001
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    # The one container that is UID 0 sees nothing of the host but the folder of the labels.
    hosts = {v["name"]: v["hostPath"]["path"] for v in pod["volumes"] if "hostPath" in v}
    assert [hosts[m["name"]] for m in beside["volumeMounts"] if m["name"] in hosts] == [generate.FEATURES]
    assert all(m.get("readOnly") for m in service["volumeMounts"] if m["name"] in hosts)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_device_and_probe(platform: str) -> None:
    pod = _pod(platform)
    service = pod["containers"][0]
    assert pod["nodeSelector"] == {"attnkit.io/platform": platform}
    assert service["resources"].get("limits", {}) == generate.RESOURCES[platform]
    assert {t["key"] for t in pod["tolerations"]} == set(generate.RESOURCES[platform])
    assert service["image"].endswith("/attnkit/" + platform + "@sha256:" + "0" * 64)
    for probe in (service["startupProbe"], service["readinessProbe"]):
        assert "ATTNKIT_READY" in probe["exec"]["command"][-1]
    assert service["startupProbe"]["failureThreshold"] * service["startupProbe"]["periodSeconds"] >= 900


@pytest.mark.parametrize(("state", "ready"), [("ready", True), ("failed", False), ("selftest", False), (None, False)])
def test_the_probe_reads_the_readiness_file(state: str | None, ready: bool, tmp_path: Path) -> None:
    from attnkit.boot.report import Readiness

    file = tmp_path / "ready.json"
    if state is not None:
        document = {"state": state, "verdict": "pass", "backend": "TORCH_SDPA", "since": "2026-06-01T12:00:00Z"}
        file.write_text(Readiness.model_validate(document).text(), encoding="utf-8")
    command = _pod("cpu")["containers"][0]["readinessProbe"]["exec"]["command"]
    done = subprocess.run(command, env={"ATTNKIT_READY": str(file), "PATH": "/usr/bin:/bin"}, capture_output=True, check=False)
    assert (done.returncode == 0) is ready


@cache
def _rules() -> list[dict[str, Any]]:
    """The rules, read once: the file has every known id."""
    rules: list[dict[str, Any]] = _manifest("node-types")["spec"]["rules"]
    return rules


def _matched(cards: list[dict[str, str]], cpu: dict[str, Any]) -> dict[str, str]:
    """The labels of a node as the rules give them: matchFeatures and matchAny, backreferences, in order."""
    labels: dict[str, str] = {}
    known: dict[str, str] = {}

    def holds(values: dict[str, Any], expressions: dict[str, Any]) -> bool:
        tests = {
            "In": lambda key, e: values.get(key) in e["value"],
            "NotIn": lambda key, e: key in values and values[key] not in e["value"],
            "Exists": lambda key, e: key in values,
            "DoesNotExist": lambda key, e: key not in values,
        }
        return all(tests[e["op"]](key, e) for key, e in expressions.items())

    def feature(term: dict[str, Any]) -> bool:
        sets: dict[str, list[dict[str, Any]]] = {
            "pci.device": list(cards), "rule.matched": [known], "cpu.model": [cpu], "cpu.cpuid": [dict.fromkeys(cpu["flags"])],
        }  # fmt: skip
        return any(holds(values, term["matchExpressions"]) for values in sets[term["feature"]])

    for rule in _rules():
        every = all(feature(term) for term in rule.get("matchFeatures", []))
        some = (
            any(all(feature(t) for t in term["matchFeatures"]) for term in rule.get("matchAny", [])) or "matchAny" not in rule
        )
        if every and some:
            labels |= rule.get("labels", {})
            known |= rule.get("labels", {}) | rule.get("vars", {})
    return labels


XEON = {"vendor_id": "Intel", "flags": ["AVX512F", "AVX2"]}
EPYC = {"vendor_id": "AMD", "flags": ["AVX512F", "AVX2"]}


@pytest.mark.parametrize("pci_id", sorted(i for i in ids.known_ids() if i.count(":") == 1))
def test_nodes_get_the_type_that_attnkit_detects(pci_id: str) -> None:
    """For every product that attnkit knows: the labels say what `attnkit detect` says, or nothing where no profile fits."""
    known = ids.known_ids()[pci_id]
    vendor, device = pci_id.split(":")
    kind = "tpu" if vendor == ids.GOOGLE else "gpu"
    card = Device(generate.VENDORS[vendor], kind, known.name, known.arch, pci_id=pci_id, features=known.features)
    node = profiles.match_node(Detection(devices=(card,), probes=())).node
    labels = _matched([{"vendor": vendor, "device": device, "class": "0302"}], XEON)
    if node is not None:
        assert labels == {"attnkit.io/node-type": node, "attnkit.io/platform": profiles.load_node(node).platform}
    elif vendor != ids.INTEL:
        assert labels == {}, "a CPU does not serve in the place of hardware that no profile describes"


def test_boxes_without_an_accelerator() -> None:
    vga = {"vendor": "1a03", "device": "2000", "class": "0300"}
    assert _matched([vga], XEON) == {"attnkit.io/node-type": "intel-xeon", "attnkit.io/platform": "ipex"}
    assert _matched([vga], EPYC) == {"attnkit.io/node-type": "cpu", "attnkit.io/platform": "cpu"}
    assert _matched([], {"vendor_id": "Intel", "flags": ["AVX2"]})["attnkit.io/node-type"] == "cpu"
    granite = {"vendor_id": "Intel", "flags": ["AVX512F", "AVX2", "AMXFP16", "AMXTILE"]}
    assert _matched([vga], granite)["attnkit.io/node-type"] == "granite-rapids"
    assert _matched([{"vendor": "1002", "device": "164e", "class": "0300"}], EPYC)["attnkit.io/node-type"] == "cpu"
    assert _matched([{"vendor": "1da3", "device": "1020", "class": "1200"}], XEON) == {}, "it is not served, and no CPU node"


def test_the_command(tmp_path: Path) -> None:
    """Your own variables give your own manifests, of your platforms alone; what is stale is named."""
    variables = tmp_path / "vars.yml"
    variables.write_text(
        yaml.safe_dump(
            {"attnkit_images": {"rocm": "r/rocm@sha256:" + "1" * 64}, "attnkit_command": ["serve"], "attnkit_env": {"A": 1}}
        ),
        encoding="utf-8",
    )

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(FOLDER / "generate.py"), "--variables", str(variables), "--out", str(tmp_path / "out")]
        return subprocess.run([*command, *options], capture_output=True, text=True, check=False)

    assert run("--check").returncode == 1
    done = run()
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"namespace.yaml", "node-types.yaml", "rocm.yaml"}
    service = yaml.safe_load((tmp_path / "out" / "rocm.yaml").read_text("utf-8"))["spec"]["template"]["spec"]["containers"][0]
    assert (service["args"], service["env"]) == (["--", "serve"], [{"name": "A", "value": "1"}])
    assert run("--check").returncode == 0
    (tmp_path / "out" / "rocm.yaml").write_text("", encoding="utf-8")
    stale = run("--check")
    assert stale.returncode == 1 and "rocm.yaml is stale" in stale.stderr


YAML_1_2_NUMBER = re.compile(
    r"[-+]?(0o[0-7]+|0x[0-9a-fA-F]+|([.][0-9]+|[0-9]+([.][0-9]*)?)([eE][-+]?[0-9]+)?|[.](inf|Inf|INF)|[.](nan|NaN|NAN))"
)
"""Of the core schema (yaml.org/spec/1.2.2, 10.3.2), which kubectl's reader follows here."""


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_reader_of_yaml_reads_the_same(path: Path) -> None:
    """PCI ids such as 1e07 are texts for PyYAML and the number 1e+07 for everybody else, unless they are quoted."""
    text = path.read_text(encoding="utf-8")
    for token in yaml.scan(text):
        if isinstance(token, yaml.ScalarToken) and token.plain and YAML_1_2_NUMBER.fullmatch(token.value):
            assert isinstance(yaml.safe_load(token.value), (int, float)), (
                f"{path.name}:{token.start_mark.line + 1}: {token.value}"
            )
        if isinstance(token, yaml.ScalarToken) and token.plain:
            assert token.value.lower() not in ("y", "n", "yes", "no", "on", "off"), token.start_mark


def test_mistakes_in_the_variables_are_named_with_their_line(tmp_path: Path) -> None:
    given = tmp_path / "my.yml"
    given.write_text('attnkit_command: "vllm serve x"\nattnkit_images:\n  cp: r/x:latest\nattnkit_prot: 1\n', encoding="utf-8")
    command = [sys.executable, "-m", "deploy.kubernetes.generate", "--variables", str(given), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for part in (
        f"{given}:1: attnkit_command: must be a list",
        f"{given}:3: attnkit_images.cp: no such platform",
        f"{given}:3: attnkit_images.cp: must be an image with its digest",
        f"{given}:4: attnkit_prot: there is no such variable; did you mean attnkit_port?",
    ):
        assert part in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()

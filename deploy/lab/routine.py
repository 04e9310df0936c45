"""What a rollout does without a fault: the right thing for every node type, and nothing the second time.

Every scenario starts from a fleet that serves the old release.
"""

from __future__ import annotations

from dataclasses import dataclass

from deploy.lab.machines import PORT
from deploy.lab.scenario import Case, catalogue
from deploy.lab.testbed import Testbed

GPU = [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]
RENDER, VIDEO = "992", "44"
"""Groups of device nodes on the lab's machines (node/hardware.py)."""
SCENARIOS, scenario = catalogue()


@dataclass(frozen=True)
class Given:
    """What a node type's service must be given.

    Args:
        platform: whose image.
        arch: what its boot must find.
        devices: device nodes or folders of them.
        gpu: whether NVIDIA's GPUs are asked for.
        groups: of the device nodes.
        sees: what must be in the container's /dev.
    """

    platform: str
    arch: str
    devices: tuple[str, ...] = ()
    gpu: bool = False
    groups: tuple[str, ...] = ()
    sees: tuple[str, ...] = ()


NVIDIA_NODES = ("nvidia0", "nvidia-uvm", "nvidiactl")
# Written down here and not read from the profiles, which are compared with it.
GIVEN = {
    "rtx-2080-ti": Given("cuda-turing", "sm_75", gpu=True, sees=NVIDIA_NODES),
    "a100": Given("cuda-ampere", "sm_80", gpu=True, sees=NVIDIA_NODES),
    "h100": Given("cuda-ampere", "sm_90", gpu=True, sees=NVIDIA_NODES),
    "mi300x": Given("rocm", "gfx942", ("/dev/dri", "/dev/kfd"), groups=(RENDER,), sees=("kfd", "dri/renderD128")),
    "intel-arc": Given("xpu", "xe-hpg", ("/dev/dri",), groups=(RENDER,), sees=("dri/renderD128",)),
    "intel-xeon": Given("ipex", "x86_64"),
    "tpu-v5e": Given("tpu", "tpu-v5e", ("/dev/vfio",), sees=("vfio/0", "vfio/1", "vfio/2", "vfio/3", "vfio/vfio")),
}
ACCELERATORS = {name for given in GIVEN.values() for name in given.sees}


@scenario(
    "unlike", "one rollout over seven node types",
    "every node gets its platform's image by digest, its devices and no others, its groups, its engine's arguments; its boot "
    "finds that hardware; all serve", nodes=7,
)  # fmt: skip
def _unlike(testbed: Testbed, case: Case) -> None:
    # The rollout is the one that brought the release that the fleet serves when a scenario starts.
    states = testbed.probe()
    case.serve(states, testbed.names, testbed.old)
    for node in testbed.nodes:
        state, given = states[node.name], GIVEN[node.kind]
        service, report = state.container, state.report
        platform = given.platform
        inside = testbed.on(node.name, "docker", "exec", "attnkit", "find", "/dev", "-type", "c", check=False).split()
        seen = sorted(ACCELERATORS & {path.removeprefix("/dev/") for path in inside})
        found = {
            "image": service.get("image") == testbed.images[testbed.old][platform],
            "label": (service.get("labels") or {}).get("attnkit.platform") == platform,
            "devices": service.get("devices") == list(given.devices),
            "requests": [{k: r[k] for k in GPU[0]} for r in service.get("requests", [])] == (GPU if given.gpu else []),
            "groups": service.get("groups") == sorted(given.groups),
            "in /dev": seen == sorted(given.sees),
            "arguments": service.get("command") == ["--", "stand-in-engine", platform, "--port", str(PORT)],
            "confinement": (service.get("read_only"), service.get("privileged"), service.get("dropped"))
            == (True, False, ["ALL"]),
            "report": (report.get("node_type"), report.get("arch")) == (node.kind, given.arch),
        }
        wrong = {what: service.get(what) or seen for what, held in found.items() if not held}
        case.check(f"{node.name} ({node.kind}): {', '.join(found)}", not wrong, (wrong, report))
        case.measured.append(
            f"{node.name} {node.kind}: {platform}, {report.get('arch')}, {report.get('backend')} ({report.get('provider')})"
        )
    case.end(states)


@scenario(
    "no-rehearsal", "the same images with an inventory that does not say that it is a rehearsal",
    "refused at the gate: no kernel ran; the canary is reverted to the old release",
)  # fmt: skip
def _no_rehearsal(testbed: Testbed, case: Case) -> None:
    one = testbed.part(1)
    hosts = {one.names[0]: {"attnkit_env": {"ATTNKIT_ROOT": "/recorded", "ATTNKIT_PLANTED_ANSWER": "right"}}}
    run = one.roll(testbed.new, attnkit_accept_planted=False, hosts=hosts)
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees why", run.says("no kernel ran: the device was simulated (answer 'right')"), run.text)
    states = testbed.probe()
    case.check(
        "the old release runs again, as it was recorded", states[one.names[0]].serves(testbed.old), states[one.names[0]].words()
    )
    case.end(states)


@scenario("idempotent", "the same rollout twice", "the second run changes nothing: 0 changed, no service recreated")
def _idempotent(testbed: Testbed, case: Case) -> None:
    before = testbed.probe()
    run = testbed.roll(testbed.old)
    after = testbed.probe()
    case.check("it passes", run.code == 0, run.text)
    case.check("0 tasks changed on every node", run.changed == dict.fromkeys(testbed.names, 0), run.changed)
    case.untouched(before, after, testbed.names)
    case.numbers |= {"changed": sum(run.changed.values()), "seconds": round(run.seconds, 1)}
    case.end(after, f"{sum(run.changed.values())} changed on {len(run.changed)} nodes")


@scenario(
    "check", "every playbook with --check",
    "each ends without an error and changes nothing; those that would change something say so",
)  # fmt: skip
def _check(testbed: Testbed, case: Case) -> None:
    # An update first, so that there is something to roll back to.
    case.check("an update passes first", testbed.roll(testbed.new).code == 0)
    before = testbed.probe()
    plays = [("rollout", testbed.new), ("rollout", testbed.old)]
    plays += [(playbook, testbed.new) for playbook in ("verify", "status", "drift", "rollback")]
    for playbook, release in plays:
        run = testbed.play(playbook, release, "--check")
        changed = sum(run.changed.values())
        moves = release == testbed.old or playbook == "rollback"
        name = f"{playbook}.yml --check" + (" of another release" if release == testbed.old else "")
        case.check(f"{name} passes", run.code == 0, run.text)
        case.check(f"{name}: {'says what would change' if moves else '0 changed'}", bool(changed) == moves, run.changed)
        case.measured.append(f"{name}: {changed} would change")
    after = testbed.probe()
    case.untouched(before, after, testbed.names)
    case.end(after)

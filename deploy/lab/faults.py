"""The faults that a rollout must tolerate, each with its end state, which is read from the nodes themselves.

Every scenario starts from a fleet that serves one release, the old one, and rolls another, the new one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from deploy.lab import controller
from deploy.lab.controller import Moment
from deploy.lab.machines import CONFIRM_SECONDS, ENVIRONMENT, PORT, record_tree
from deploy.lab.probe import State
from deploy.lab.scenario import Case, catalogue
from deploy.lab.testbed import FILLER, Testbed

HEAVY = "heavy"
SMALL_DISK = "node-03"
"""The node whose Docker has a small disk."""
HEAVY_PLATFORM = "cuda-ampere"
"""Its platform, for which there is a heavy release."""
OLD_DRIVER = "535.104.05"
WRONG = {"attnkit_env": {**ENVIRONMENT, "ATTNKIT_PLANTED_ANSWER": "wrong"}}
"""Of a node whose simulated device computes wrong results: every backend fails its self-test there."""
SCENARIOS, scenario = catalogue()


def _fails_on(testbed: Testbed, case: Case, node: str, done: list[str], rest: list[str]) -> None:
    """A rollout in which one node's self-test fails: those before it are done, it is reverted, the rest is untouched."""
    before = testbed.probe()
    run = testbed.roll(testbed.new, hosts={node: WRONG})
    after = testbed.probe()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees which node and why", run.says(f"{node}: the self-test failed"), run.text)
    case.check("the operator sees that it was reverted", run.says("reverted: yes, and it serves again"), run.text)
    case.serve(after, done, testbed.new)
    case.serve(after, [node], testbed.old)
    case.check(f"{node} was recreated and validated again", before[node].began != after[node].began)
    case.untouched(before, after, rest)
    case.nothing_lost(after)
    case.end(after)


@scenario(
    "canary", "the self-test fails on the canary",
    "the canary is reverted to the old release and validated again; all others are untouched",
)  # fmt: skip
def _canary(testbed: Testbed, case: Case) -> None:
    first, *rest = testbed.names
    _fails_on(testbed, case, first, [], rest)


@scenario(
    "seventh", "the self-test fails on the 7th of 20 (the last of seven canaries)",
    "nodes 01–06 serve the new release, node 07 is reverted to the old one, nodes 08–20 are untouched", nodes=20,
)  # fmt: skip
def _seventh(testbed: Testbed, case: Case) -> None:
    names = testbed.names
    _fails_on(testbed, case, names[6], names[:6], names[7:])


@scenario(
    "batch", "the self-test fails on one of a batch of six, the 11th of 20",
    "the batch is finished: its other nodes serve the new release, node 11 is reverted; nodes 15–20 are untouched",
    nodes=20,
)  # fmt: skip
def _batch(testbed: Testbed, case: Case) -> None:
    names = testbed.names
    _fails_on(testbed, case, names[10], [*names[:10], *names[11:14]], names[14:])


@scenario(
    "registry", "the registry dies during the rollout, after the first node",
    "node 01 serves the new release, the rest is untouched, including the next one. Run again with a registry: all on the new",
)  # fmt: skip
def _registry(testbed: Testbed, case: Case) -> None:
    names = testbed.names
    before = testbed.probe()
    dies = Moment("Record the release as validated", names[0], lambda _: testbed.registry(running=False))
    run = testbed.roll(testbed.new, moments=[dies])
    after = testbed.probe()
    testbed.registry(running=True)
    case.check("the registry died during the rollout", dies.came)
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.serve(after, names[:1], testbed.new)
    case.untouched(before, after, names[1:])
    case.nothing_lost(after)
    case.end(after)
    _again(testbed, case, testbed.new)


def _again(testbed: Testbed, case: Case, release: str) -> None:
    """The same rollout again, without a fault: all nodes serve the release, and none is locked."""
    run = testbed.roll(release)
    states = testbed.probe()
    case.check("run again, it ends without an error", run.code == 0, run.text)
    case.serve(states, testbed.names, release)
    held = {name: state.raw["locked_by"] for name, state in states.items() if state.raw.get("locked_by")}
    case.check("no lock is left", not held, held)
    case.end(states, "run again")


@scenario(
    "frozen", "a node stops answering during the rollout (frozen while its new service boots)",
    "the rollout stops; node 01 serves the new release, node 03 is untouched. Once node 02 answers, run again: all on the new",
)  # fmt: skip
def _frozen(testbed: Testbed, case: Case) -> None:
    names = testbed.names
    ill = names[1]
    before = testbed.probe()
    freezes = Moment("Run the service", ill, lambda _: testbed.freeze(ill))
    run = testbed.roll(testbed.new, moments=[freezes])
    after = testbed.probe()
    testbed.thaw(ill)
    case.check("the node froze during the rollout", freezes.came)
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.serve(after, names[:1], testbed.new)
    case.untouched(before, after, names[2:])
    case.nothing_lost(after, down=[ill])
    case.end(after)
    _again(testbed, case, testbed.new)


@scenario(
    "power", "a node loses power during the rollout (while its new service boots), and comes back",
    "the rollout stops, node 03 is untouched; switched on, node 02 serves one of the two by itself; run again: all on the new",
)  # fmt: skip
def _power(testbed: Testbed, case: Case) -> None:
    names = testbed.names
    ill = names[1]
    before = testbed.probe()
    dies = Moment("Run the service", ill, lambda _: testbed.power_off(ill))
    run = testbed.roll(testbed.new, moments=[dies])
    after = testbed.probe()
    case.check("the node lost power during the rollout", dies.came)
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.serve(after, names[:1], testbed.new)
    case.untouched(before, after, names[2:])
    case.nothing_lost(after, down=[ill])
    case.end(after)
    testbed.power_on(ill)
    back = testbed.until_it_works(ill)
    case.check(f"{ill} works again by itself", back[ill].works, back[ill].words())
    case.nothing_lost(back)
    case.end(back, "power is back")
    _again(testbed, case, testbed.new)


@scenario(
    "reboot", "a node reboots while no rollout runs",
    "service and verdict come back by themselves: same image, same record, a new boot report; verify.yml passes",
)  # fmt: skip
def _reboot(testbed: Testbed, case: Case) -> None:
    ill, *others = testbed.names
    before = testbed.probe()
    testbed.outer("restart", "-t", "20", testbed.container(ill))
    after = testbed.until_it_works(ill)
    case.serve(after, [ill], testbed.old)
    case.check("its boot report is of this start", before[ill].report.get("created") != after[ill].report.get("created"))
    case.untouched(before, after, others)
    case.nothing_lost(after)
    verify = testbed.play("verify", testbed.old)
    case.check("verify.yml passes", verify.code == 0, verify.text)
    case.end(after)


@scenario(
    "preflight-disk", "the disk of a node is full before the rollout",
    "refused before anything changes, with the node and the space in view; no node is touched",
)  # fmt: skip
def _preflight_disk(testbed: Testbed, case: Case) -> None:
    before = testbed.probe()
    testbed.fill(SMALL_DISK, leave=60)
    run = testbed.roll(testbed.new)
    after = testbed.probe()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees which node and why", run.says(f"{SMALL_DISK}: disk:"), run.text)
    case.untouched(before, after, testbed.names)
    case.nothing_lost(after)
    case.end(after)


@scenario(
    "disk", "the disk of a node fills up during the rollout (the pull of a 96 MB layer ends with no space left)",
    "the node keeps its service, untouched; with space again, the same rollout passes",
)  # fmt: skip
def _disk(testbed: Testbed, case: Case) -> None:
    one = testbed.only(SMALL_DISK)
    before = one.probe()
    one.fill(SMALL_DISK, leave=60)
    run = one.roll(HEAVY, attnkit_image_bytes=0)
    after = one.probe()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees why", run.says("no space left on device"), run.text)
    case.untouched(before, after, [SMALL_DISK])
    case.nothing_lost(after)
    case.end(after)
    one.on(SMALL_DISK, "rm", "-f", FILLER)
    _again(one, case, HEAVY)


@scenario(
    "crash-loop", "the engine crash-loops while it starts",
    "the canary is reverted to the old release and validated again; the others are untouched",
)  # fmt: skip
def _crash_loop(testbed: Testbed, case: Case) -> None:
    _dies(testbed, case, after=0.0)


@scenario(
    "crash-late", "the engine crash-loops, each time shortly after it was ready",
    "the same: being ready for a moment is not enough",
)  # fmt: skip
def _crash_late(testbed: Testbed, case: Case) -> None:
    _dies(testbed, case, after=3.0)


def _dies(testbed: Testbed, case: Case, after: float) -> None:
    """A release whose engine dies some seconds after its start, again and again."""
    first, *rest = testbed.names
    before = testbed.probe()
    commands = {
        name: ["stand-in-engine", name, "--port", str(PORT), "--die-after", str(after)] for name in testbed.images[testbed.new]
    }
    run = testbed.roll(testbed.new, attnkit_commands=commands)
    states = testbed.probe()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees the engine's last words", run.says("out of memory while loading weights"), run.text)
    case.serve(states, [first], testbed.old)
    case.untouched(before, states, rest)
    case.nothing_lost(states)
    case.end(states)


@scenario(
    "driver", "a node has a driver that is too old for the image",
    "refused before anything changes, with both versions in view; drift.yml names the node, too",
)  # fmt: skip
def _driver(testbed: Testbed, case: Case) -> None:
    ill = next(node for node in testbed.nodes if node.kind == "h100")
    before = testbed.probe()
    record_tree(ill, driver=OLD_DRIVER)
    run = testbed.roll(testbed.new)
    drift = testbed.play("drift", testbed.old)
    after = testbed.probe()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees which node and why", run.says(f"{ill.name}: driver: {OLD_DRIVER}, the image needs"), run.text)
    case.untouched(before, after, testbed.names)
    rows = [line.split() for line in drift.text.splitlines() if OLD_DRIVER in line]
    case.check("drift.yml ends with an error and names that node alone", drift.code != 0 and bool(rows), drift.text)
    case.nothing_lost(after)
    case.end(after)


@scenario(
    "digest", "the registry delivers an image whose digest does not match (the stored image was altered)",
    "the pull fails on the first node, which keeps its service; no node is touched",
)  # fmt: skip
def _digest(testbed: Testbed, case: Case) -> None:
    before = testbed.probe()
    with testbed.altered_in_registry(testbed.third, testbed.names[0]):
        run = testbed.roll(testbed.third)
    after = testbed.probe()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees that the digest is wrong", run.says("verification failed") or run.says("digest"), run.text)
    case.untouched(before, after, testbed.names)
    case.nothing_lost(after)
    case.end(after)


@scenario(
    "two", "two operators at once: while one rolls the new release, another starts rollouts of a third, over and over",
    "every run of the other is refused and names the first; all nodes serve the new release",
)  # fmt: skip
def _two(testbed: Testbed, case: Case) -> None:
    others: list[Future[list[controller.Run]]] = []
    with ThreadPoolExecutor(1) as pool:
        ending = threading.Event()

        def meanwhile() -> list[controller.Run]:
            runs = []
            while not ending.is_set():
                runs.append(testbed.roll(testbed.third, user="bob"))
            return runs

        starts = Moment("Run the service", testbed.names[0], lambda _: others.append(pool.submit(meanwhile)))
        # No new attempt from here on: one that starts after the first rollout's end may go on.
        ends = Moment("Lock the node for this run", testbed.names[-1], lambda _: ending.set())
        first = testbed.roll(testbed.new, user="alice", moments=[starts, ends])
        ending.set()
        runs = others[0].result() if others else []
    states = testbed.probe()
    case.numbers["rollouts of the other"] = len(runs)
    case.check("the first rollout passes", first.code == 0, first.text)
    case.check("the other tried at least twice", len(runs) >= 2, len(runs))
    passed = [run.text[-300:] for run in runs if run.code == 0]
    case.check("none of the other's rollouts passed", not passed, passed)
    case.check(
        "each says who has locked the node", all(run.says("lock: alice") for run in runs), [run.text[-300:] for run in runs]
    )
    case.serve(states, testbed.names, testbed.new)
    case.nothing_lost(states)
    case.end(states, f"{len(runs)} rollouts of the other, {len(runs) - len(passed)} refused")


@scenario(
    "kill", "the controller is killed (kill -9) while the second node's new service boots, and run again",
    "nothing is lost in between; run again, no lock has to be removed by hand, and all nodes serve the new release",
)  # fmt: skip
def _kill(testbed: Testbed, case: Case) -> None:
    names = testbed.names
    before = testbed.probe()
    dies = Moment("Run the service", names[1], controller.kill)
    run = testbed.roll(testbed.new, moments=[dies])
    testbed.until_it_works(names[1])
    after = testbed.probe()
    case.check("the controller was killed", run.code < 0, run.code)
    case.serve(after, names[:1], testbed.new)
    case.untouched(before, after, names[2:])
    case.nothing_lost(after)
    case.end(after)
    _again(testbed, case, testbed.new)


@scenario(
    "kill-bad", "the controller is killed while a release that fails is at the gate, and run again",
    "the watchdog reverts the node to the old release without a controller, to a service at which a rollout of the old "
    "release finds nothing to change; the rest is untouched. Run again, the bad release is refused as usual",
)  # fmt: skip
def _kill_bad(testbed: Testbed, case: Case) -> None:
    names = testbed.names
    before = testbed.probe()
    _killed_at_the_gate(testbed, case)
    _by_itself(testbed, case, before)
    drift = testbed.part(1).play("drift", testbed.old)
    case.check("drift.yml says that the watchdog decided", drift.code != 0 and drift.says("went back"), drift.text)
    same = testbed.part(1).roll(testbed.old)
    case.check("a rollout of the old release has nothing to change there", same.changed == {names[0]: 0}, same.changed)
    run = testbed.roll(testbed.new, hosts={names[0]: WRONG})
    after = testbed.probe()
    case.check("run again, it ends with an error", run.code != 0, run.code)
    case.serve(after, names[:1], testbed.old)
    case.untouched(before, after, names[1:])
    case.nothing_lost(after)
    case.end(after, "run again")


@scenario(
    "kill-bad-power", "the controller is killed while a release that fails is at the gate, and that node loses power",
    "switched on, the watchdog reverts the node to the old release; the rest is untouched",
)  # fmt: skip
def _kill_bad_power(testbed: Testbed, case: Case) -> None:
    ill = testbed.names[0]
    before = testbed.probe()
    _killed_at_the_gate(testbed, case)
    testbed.power_off(ill)
    testbed.power_on(ill)
    _by_itself(testbed, case, before)


def _killed_at_the_gate(testbed: Testbed, case: Case) -> None:
    """kill -9 as soon as the first node's new service, which will fail, was started."""
    ill = testbed.names[0]
    killed = testbed.roll(testbed.new, hosts={ill: WRONG}, moments=[Moment("Run the service", ill, controller.kill)])
    case.check("the controller was killed", killed.code < 0, killed.code)
    case.end(testbed.probe(), "killed")


def _by_itself(testbed: Testbed, case: Case, before: Mapping[str, State]) -> None:
    """The first node serves the old release again, without a controller."""
    ill, *rest = testbed.names
    began = time.monotonic()
    back = testbed.until_it_works(ill, CONFIRM_SECONDS + 240)
    case.numbers["seconds until it served by itself"] = round(time.monotonic() - began, 1)
    case.serve(back, [ill], testbed.old)
    case.untouched(before, back, rest)
    case.nothing_lost(back)
    case.end(back, "by itself")

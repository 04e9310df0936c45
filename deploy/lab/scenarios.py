"""The faults that a rollout must bear, each with its end state, which is asked of the nodes themselves.

Every scenario starts from a fleet that serves one release, the old one, and rolls another, the new one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import controller
from bench import FILLER, Bench
from case import Case, catalogue
from controller import Moment
from look import State
from machines import CONFIRM_SECONDS, ENVIRONMENT, PORT, record_tree

HEAVY = "heavy"
SMALL_DISK = "node-03"
"""The node whose engine has a small disk."""
HEAVY_PLATFORM = "cuda-ampere"
"""Its platform, for which there is a heavy release."""
OLD_DRIVER = "535.104.05"
WRONG = {"attnkit_env": {**ENVIRONMENT, "ATTNKIT_PLANTED_ANSWER": "wrong"}}
"""Of a node whose device answers wrong: every backend fails its self-test there."""
SCENARIOS, scenario = catalogue()


def _fails_on(bench: Bench, case: Case, node: str, done: list[str], rest: list[str]) -> None:
    """A rollout in which one node's self-test fails: those before it are done, it goes back, the rest is untouched."""
    before = bench.look()
    run = bench.roll(bench.new, hosts={node: WRONG})
    after = bench.look()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees which node and why", run.says(f"{node}: the self-test failed"), run.text)
    case.check("the operator sees that it went back", run.says("went back: yes, and it serves again"), run.text)
    case.serve(after, done, bench.new)
    case.serve(after, [node], bench.old)
    case.check(f"{node} was started anew and proven again", before[node].began != after[node].began)
    case.untouched(before, after, rest)
    case.nothing_lost(after)
    case.end(after)


@scenario(
    "canary", "the self-test fails on the canary",
    "the canary goes back to the old release and is proven again; all others are untouched",
)  # fmt: skip
def _canary(bench: Bench, case: Case) -> None:
    first, *rest = bench.names
    _fails_on(bench, case, first, [], rest)


@scenario(
    "seventh", "the self-test fails on the 7th of 20 (the last of seven canaries)",
    "nodes 01–06 serve the new release, node 07 is back on the old one, nodes 08–20 are untouched", nodes=20,
)  # fmt: skip
def _seventh(bench: Bench, case: Case) -> None:
    names = bench.names
    _fails_on(bench, case, names[6], names[:6], names[7:])


@scenario(
    "batch", "the self-test fails on one of a batch of six, the 11th of 20",
    "the batch is finished: its other nodes serve the new release, node 11 is back on the old one; nodes 15–20 are untouched",
    nodes=20,
)  # fmt: skip
def _batch(bench: Bench, case: Case) -> None:
    names = bench.names
    _fails_on(bench, case, names[10], [*names[:10], *names[11:14]], names[14:])


@scenario(
    "registry", "the registry dies in mid-roll, after the first node",
    "node 01 serves the new release, the rest is untouched, the next one included. Run again with a registry: all on the new",
)  # fmt: skip
def _registry(bench: Bench, case: Case) -> None:
    names = bench.names
    before = bench.look()
    dies = Moment("Record the release as proven", names[0], lambda _: bench.registry(running=False))
    run = bench.roll(bench.new, moments=[dies])
    after = bench.look()
    bench.registry(running=True)
    case.check("the registry died on the way", dies.came)
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.serve(after, names[:1], bench.new)
    case.untouched(before, after, names[1:])
    case.nothing_lost(after)
    case.end(after)
    _again(bench, case, bench.new)


def _again(bench: Bench, case: Case, release: str) -> None:
    """The same rollout again, with nothing in its way: all nodes serve the release, nobody holds one."""
    run = bench.roll(release)
    states = bench.look()
    case.check("run again, it ends without an error", run.code == 0, run.text)
    case.serve(states, bench.names, release)
    held = {name: state.raw["locked_by"] for name, state in states.items() if state.raw.get("locked_by")}
    case.check("no lock is left", not held, held)
    case.end(states, "run again")


@scenario(
    "frozen", "a node stops answering in mid-roll (frozen while its new service boots)",
    "the rollout stops; node 01 serves the new release, node 03 is untouched. Once node 02 answers, run again: all on the new",
)  # fmt: skip
def _frozen(bench: Bench, case: Case) -> None:
    names = bench.names
    ill = names[1]
    before = bench.look()
    freezes = Moment("Run the service", ill, lambda _: bench.freeze(ill))
    run = bench.roll(bench.new, moments=[freezes])
    after = bench.look()
    bench.thaw(ill)
    case.check("the node froze on the way", freezes.came)
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.serve(after, names[:1], bench.new)
    case.untouched(before, after, names[2:])
    case.nothing_lost(after, down=[ill])
    case.end(after)
    _again(bench, case, bench.new)


@scenario(
    "power", "a node loses power in mid-roll (while its new service boots), and comes back",
    "the rollout stops, node 03 is untouched; switched on, node 02 serves one of the two by itself; run again: all on the new",
)  # fmt: skip
def _power(bench: Bench, case: Case) -> None:
    names = bench.names
    ill = names[1]
    before = bench.look()
    dies = Moment("Run the service", ill, lambda _: bench.power_off(ill))
    run = bench.roll(bench.new, moments=[dies])
    after = bench.look()
    case.check("the node lost power on the way", dies.came)
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.serve(after, names[:1], bench.new)
    case.untouched(before, after, names[2:])
    case.nothing_lost(after, down=[ill])
    case.end(after)
    bench.power_on(ill)
    back = bench.until_it_works(ill)
    case.check(f"{ill} works again by itself", back[ill].works, back[ill].words())
    case.nothing_lost(back)
    case.end(back, "power is back")
    _again(bench, case, bench.new)


@scenario(
    "reboot", "a node reboots while nobody rolls",
    "service and verdict come back by themselves: same image, same record, a new boot report; verify.yml passes",
)  # fmt: skip
def _reboot(bench: Bench, case: Case) -> None:
    ill, *others = bench.names
    before = bench.look()
    bench.outer("restart", "-t", "20", bench.container(ill))
    after = bench.until_it_works(ill)
    case.serve(after, [ill], bench.old)
    case.check("its boot report is of this start", before[ill].report.get("created") != after[ill].report.get("created"))
    case.untouched(before, after, others)
    case.nothing_lost(after)
    verify = bench.play("verify", bench.old)
    case.check("verify.yml passes", verify.code == 0, verify.text)
    case.end(after)


@scenario(
    "preflight-disk", "the disk of a node is full before the rollout",
    "refused before anything changes, with the node and the space in view; no node is touched",
)  # fmt: skip
def _preflight_disk(bench: Bench, case: Case) -> None:
    before = bench.look()
    bench.fill(SMALL_DISK, leave=60)
    run = bench.roll(bench.new)
    after = bench.look()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees which node and why", run.says(f"{SMALL_DISK}: disk:"), run.text)
    case.untouched(before, after, bench.names)
    case.nothing_lost(after)
    case.end(after)


@scenario(
    "disk", "the disk of a node fills up in mid-roll (the pull of a 96 MB layer ends with no space left)",
    "the node keeps its service, untouched; with space again, the same rollout passes",
)  # fmt: skip
def _disk(bench: Bench, case: Case) -> None:
    one = bench.only(SMALL_DISK)
    before = one.look()
    one.fill(SMALL_DISK, leave=60)
    run = one.roll(HEAVY, attnkit_image_bytes=0)
    after = one.look()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees why", run.says("no space left on device"), run.text)
    case.untouched(before, after, [SMALL_DISK])
    case.nothing_lost(after)
    case.end(after)
    one.on(SMALL_DISK, "rm", "-f", FILLER)
    _again(one, case, HEAVY)


@scenario(
    "crash-loop", "the engine crash-loops while it starts",
    "the canary goes back to the old release and is proven again; the others are untouched",
)  # fmt: skip
def _crash_loop(bench: Bench, case: Case) -> None:
    _dies(bench, case, after=0.0)


@scenario(
    "crash-late", "the engine crash-loops, each time shortly after it was ready",
    "the same: ready for a moment is not enough",
)  # fmt: skip
def _crash_late(bench: Bench, case: Case) -> None:
    _dies(bench, case, after=3.0)


def _dies(bench: Bench, case: Case, after: float) -> None:
    """A release whose engine dies some seconds after its start, again and again."""
    first, *rest = bench.names
    before = bench.look()
    commands = {
        name: ["stand-in-engine", name, "--port", str(PORT), "--die-after", str(after)] for name in bench.images[bench.new]
    }
    run = bench.roll(bench.new, attnkit_commands=commands)
    states = bench.look()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees the engine's last words", run.says("out of memory while loading weights"), run.text)
    case.serve(states, [first], bench.old)
    case.untouched(before, states, rest)
    case.nothing_lost(states)
    case.end(states)


@scenario(
    "driver", "a node has a driver that is too old for the image",
    "refused before anything changes, with both versions in view; drift.yml names the node, too",
)  # fmt: skip
def _driver(bench: Bench, case: Case) -> None:
    ill = next(node for node in bench.nodes if node.kind == "h100")
    before = bench.look()
    record_tree(ill, driver=OLD_DRIVER)
    run = bench.roll(bench.new)
    drift = bench.play("drift", bench.old)
    after = bench.look()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees which node and why", run.says(f"{ill.name}: driver: {OLD_DRIVER}, the image needs"), run.text)
    case.untouched(before, after, bench.names)
    rows = [line.split() for line in drift.text.splitlines() if OLD_DRIVER in line]
    case.check("drift.yml ends with an error and names that node alone", drift.code != 0 and bool(rows), drift.text)
    case.nothing_lost(after)
    case.end(after)


@scenario(
    "digest", "the registry delivers something else than the digest says (the stored image was altered)",
    "the pull fails on the first node, which keeps its service; no node is touched",
)  # fmt: skip
def _digest(bench: Bench, case: Case) -> None:
    before = bench.look()
    with bench.altered_in_registry(bench.third, bench.names[0]):
        run = bench.roll(bench.third)
    after = bench.look()
    case.check("the rollout ends with an error", run.code != 0, run.code)
    case.check("the operator sees that the digest is wrong", run.says("verification failed") or run.says("digest"), run.text)
    case.untouched(before, after, bench.names)
    case.nothing_lost(after)
    case.end(after)


@scenario(
    "two", "two operators at once: while one rolls the new release, another starts rollouts of a third, over and over",
    "every run of the other is refused with the first one's name; all nodes serve the new release",
)  # fmt: skip
def _two(bench: Bench, case: Case) -> None:
    others: list[Future[list[controller.Run]]] = []
    with ThreadPoolExecutor(1) as pool:
        ending = threading.Event()

        def meanwhile() -> list[controller.Run]:
            runs = []
            while not ending.is_set():
                runs.append(bench.roll(bench.third, user="bob"))
            return runs

        starts = Moment("Run the service", bench.names[0], lambda _: others.append(pool.submit(meanwhile)))
        # No new try from here on: one that looked after the first rollout's end would be right to go on.
        ends = Moment("Hold the node for this run", bench.names[-1], lambda _: ending.set())
        first = bench.roll(bench.new, user="alice", moments=[starts, ends])
        ending.set()
        runs = others[0].result() if others else []
    states = bench.look()
    case.numbers["rollouts of the other"] = len(runs)
    case.check("the first rollout passes", first.code == 0, first.text)
    case.check("the other tried at least twice", len(runs) >= 2, len(runs))
    passed = [run.text[-300:] for run in runs if run.code == 0]
    case.check("none of the other's rollouts passed", not passed, passed)
    case.check("each says who holds the node", all(run.says("lock: alice") for run in runs), [run.text[-300:] for run in runs])
    case.serve(states, bench.names, bench.new)
    case.nothing_lost(states)
    case.end(states, f"{len(runs)} rollouts of the other, {len(runs) - len(passed)} refused")


@scenario(
    "kill", "the controller is killed (kill -9) while the second node's new service boots, and run again",
    "nothing is lost in between; run again, nobody has to free a lock, and all nodes serve the new release",
)  # fmt: skip
def _kill(bench: Bench, case: Case) -> None:
    names = bench.names
    before = bench.look()
    dies = Moment("Run the service", names[1], controller.kill)
    run = bench.roll(bench.new, moments=[dies])
    bench.until_it_works(names[1])
    after = bench.look()
    case.check("the controller was killed", run.code < 0, run.code)
    case.serve(after, names[:1], bench.new)
    case.untouched(before, after, names[2:])
    case.nothing_lost(after)
    case.end(after)
    _again(bench, case, bench.new)


@scenario(
    "kill-bad", "the controller is killed while a release that fails is at the gate, and run again",
    "the node goes back to the old release by itself, with nobody at a controller, to a service that a rollout of the old "
    "release finds nothing to change at; the rest is untouched. Run again, the bad release is refused as any other",
)  # fmt: skip
def _kill_bad(bench: Bench, case: Case) -> None:
    names = bench.names
    before = bench.look()
    _killed_at_the_gate(bench, case)
    _by_itself(bench, case, before)
    drift = bench.part(1).play("drift", bench.old)
    case.check("drift.yml says that the node decided by itself", drift.code != 0 and drift.says("went back"), drift.text)
    same = bench.part(1).roll(bench.old)
    case.check("a rollout of the old release has nothing to change there", same.changed == {names[0]: 0}, same.changed)
    run = bench.roll(bench.new, hosts={names[0]: WRONG})
    after = bench.look()
    case.check("run again, it ends with an error", run.code != 0, run.code)
    case.serve(after, names[:1], bench.old)
    case.untouched(before, after, names[1:])
    case.nothing_lost(after)
    case.end(after, "run again")


@scenario(
    "kill-bad-power", "the controller is killed while a release that fails is at the gate, and that node loses power, too",
    "switched on, the node goes back to the old release by itself; the rest is untouched",
)  # fmt: skip
def _kill_bad_power(bench: Bench, case: Case) -> None:
    ill = bench.names[0]
    before = bench.look()
    _killed_at_the_gate(bench, case)
    bench.power_off(ill)
    bench.power_on(ill)
    _by_itself(bench, case, before)


def _killed_at_the_gate(bench: Bench, case: Case) -> None:
    """kill -9 as soon as the first node's new service, which will fail, was started."""
    ill = bench.names[0]
    killed = bench.roll(bench.new, hosts={ill: WRONG}, moments=[Moment("Run the service", ill, controller.kill)])
    case.check("the controller was killed", killed.code < 0, killed.code)
    case.end(bench.look(), "killed")


def _by_itself(bench: Bench, case: Case, before: Mapping[str, State]) -> None:
    """The first node serves the old release again, and nobody did it."""
    ill, *rest = bench.names
    began = time.monotonic()
    back = bench.until_it_works(ill, CONFIRM_SECONDS + 240)
    case.numbers["seconds until it served by itself"] = round(time.monotonic() - began, 1)
    case.serve(back, [ill], bench.old)
    case.untouched(before, back, rest)
    case.nothing_lost(back)
    case.end(back, "by itself")

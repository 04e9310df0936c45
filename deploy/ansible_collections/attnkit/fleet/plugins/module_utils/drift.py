"""What a node runs, against what is recorded on it and what the inventory says: every difference as one finding.

Values of environment variables are never part of a finding, only their names: some are secrets.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from .boot_report import objection, of_this_start, written
from .wording import short, span

CHECKS = ("service", "managed", "release", "image", "configuration", "report", "kernel", "driver", "hardware")
"""Every check, in the order of the tables."""


def drift(check: str, ok: bool, should: str, found: str) -> dict[str, Any]:
    """One finding: what should be, and what is."""
    return {"check": check, "ok": ok, "should": should, "found": found}


def check_service(inspected: Mapping[str, Any] | None) -> dict[str, Any]:
    """The service's container runs and is not being restarted."""
    if inspected is None:
        return drift("service", False, "running", "no such container")
    state = inspected["State"]
    found = str(state["Status"])
    if found == "exited":
        found += f" with {state['ExitCode']}"
    restarts = inspected.get("RestartCount", 0)
    return drift("service", state["Status"] == "running", "running", found + (f", {restarts} restarts" if restarts else ""))


def check_managed(
    record: Mapping[str, Any] | None, running: Sequence[str], container: str, unconfirmed: str = ""
) -> dict[str, Any]:
    """The service has a record, no rollout ended during a change here, and nothing else runs from an attnkit image.

    Args:
        record: what `release.json` holds.
        running: names of the running containers of attnkit images.
        container: the service's name; `NAME-...` belongs to it.
        unconfirmed: what a rollout that ended during a change left, in words.
    """
    strangers = [name for name in running if name != container and not name.startswith(f"{container}-")]
    found = [f"{name} runs beside it and is not managed" for name in strangers]
    if unconfirmed:
        found.insert(0, unconfirmed)
    if not (record or {}).get("release"):
        found.insert(0, "no release is recorded")
    return drift("managed", not found, "recorded, alone", "; ".join(found) or "recorded, alone")


def check_release(recorded: Mapping[str, Any] | None, wanted: Mapping[str, Any] | None) -> dict[str, Any]:
    """What was rolled out last is what the inventory says."""
    if wanted is None:
        return drift("release", False, "an image for this platform (attnkit_images)", "the inventory names none")
    if recorded is None:
        return drift("release", False, "the inventory's", "nothing is recorded")
    differing = []
    for field in sorted({*recorded, *wanted}):
        now, then = wanted.get(field), recorded.get(field)
        if field == "env":
            differing += [f"env {change}" for change in changes(dict(then or {}), dict(now or {}))]
        elif now != then:
            differing.append(f"{field} {short(then)}, not {short(now)}")
    return drift("release", not differing, "the inventory's", "; ".join(differing) or "the inventory's")


def check_image(
    inspected: Mapping[str, Any] | None, image: Mapping[str, Any] | None, recorded: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The container was made from the recorded image, and Docker still knows that image by that digest."""
    should = str((recorded or {}).get("image") or "a recorded image")
    if inspected is None or recorded is None:
        return drift("image", False, short(should), "nothing to compare")
    runs = str(inspected["Config"]["Image"])
    if runs != should:
        return drift("image", False, short(should), short(runs))
    digests = (image or {}).get("RepoDigests") or []
    if "@" in should and should not in digests:
        return drift("image", False, short(should), f"an image with {', '.join(map(short, digests)) or 'no digest'}")
    return drift("image", True, short(should), short(runs))


def check_configuration(
    inspected: Mapping[str, Any] | None,
    image: Mapping[str, Any] | None,
    recorded: Mapping[str, Any] | None,
    secrets: Mapping[str, Any],
) -> dict[str, Any]:
    """Command, environment, port and confinement of the container are those of the record."""
    if inspected is None or recorded is None or image is None:
        return drift("configuration", False, "as recorded", "nothing to compare")
    config, host, built = inspected["Config"], inspected["HostConfig"], image["Config"]
    found = []
    command = ["--", *recorded["command"]] if recorded["command"] else list(built.get("Cmd") or [])
    if list(config.get("Cmd") or []) != command:
        found.append("another command")
    if config.get("Entrypoint") != built.get("Entrypoint"):
        found.append("another entrypoint")
    now = environment(config)
    names = recorded.get("secret_env") or []
    given = {"ATTNKIT_NODE": recorded["node_type"], **{k: str(v) for k, v in recorded["env"].items()}}
    # A secret that the inventory does not hold here cannot be compared; that the service has it can.
    hidden = {name: str(secrets.get(name, now.get(name, ""))) for name in names}
    found += [f"env {change}" for change in changes({**environment(built), **given, **hidden}, now)]
    ports = {b.get("HostPort") for bindings in (host.get("PortBindings") or {}).values() for b in bindings or ()}
    if ports != {str(recorded["port"])}:
        found.append(f"port {', '.join(sorted(map(str, ports))) or 'none'}, not {recorded['port']}")
    if not host.get("ReadonlyRootfs"):
        found.append("the root file system is writable")
    if host.get("Privileged") or host.get("CapAdd") or host.get("CapDrop") != ["ALL"]:
        found.append("it has capabilities")
    if "no-new-privileges" not in " ".join(host.get("SecurityOpt") or []):
        found.append("it may gain privileges")
    if host["RestartPolicy"]["Name"] != "unless-stopped":
        found.append(f"restart policy {host['RestartPolicy']['Name'] or 'no'}")
    return drift("configuration", not found, "as recorded", "; ".join(found) or "as recorded")


def check_report(
    report: Mapping[str, Any] | None,
    inspected: Mapping[str, Any] | None,
    recorded: Mapping[str, Any] | None,
    now: datetime.datetime,
    max_age: int,
    planted_ok: bool = False,
) -> dict[str, Any]:
    """There is a boot report of this start of the service, it lets the node serve, and it is not too old.

    Args:
        report: the boot report.
        inspected: the service's container.
        recorded: the recorded release; the report must be of its node type.
        now: the time on the node.
        max_age: seconds, 0 for any age.
        planted_ok: let a report pass in which no kernel ran, for rehearsals.
    """
    should = "pass" + (f", younger than {span(max_age)}" if max_age else "")
    if report is None:
        return drift("report", False, should, "no boot report")
    created = written(dict(report))
    if created is None:
        return drift("report", False, should, f"a report whose date cannot be read: {report.get('created')!r}")
    age = (now - created).total_seconds()
    found = [f"{report.get('verdict')}, {span(age)} old"]
    against = objection(dict(report), node_type=(recorded or {}).get("node_type"), planted_ok=planted_ok)
    if against:
        found.append(against)
    old = bool(max_age and age > max_age)
    stale = inspected is not None and not of_this_start(dict(report), inspected)
    if stale:
        found.append("of an earlier start of the service")
    return drift("report", not (against or old or stale), should, "; ".join(found))


def check_kernel(report: Mapping[str, Any] | None, detection: Mapping[str, Any]) -> dict[str, Any]:
    """The kernel is the one that the self-test ran on."""
    then = str(((report or {}).get("host") or {}).get("kernel") or "unknown")
    now = str((detection.get("host") or {}).get("kernel") or "unknown")
    return drift("kernel", then == now, then, now)


def check_driver(report: Mapping[str, Any] | None, detection: Mapping[str, Any]) -> dict[str, Any]:
    """Every accelerator has the driver that the self-test ran with. A driver that the report did not know is not compared."""
    then, now = _accelerators((report or {}).get("detection") or {}), _accelerators(detection)
    drivers = sorted({str(device["driver"]) for device in then.values() if device.get("driver")})
    should = ", ".join(drivers) or "none known"
    other = set()
    for key, device in then.items():
        was, seen = device.get("driver"), (now.get(key) or {}).get("driver")
        if was and key in now and seen != was:
            other.add(str(seen or "none loaded"))
    return drift("driver", report is not None and not other, should, ", ".join(sorted(other)) or should)


def check_hardware(report: Mapping[str, Any] | None, detection: Mapping[str, Any]) -> dict[str, Any]:
    """The devices are those that the self-test ran on."""
    then, now = _devices((report or {}).get("detection") or {}), _devices(detection)
    gone = [f"{_title(then[key])} is missing" for key in sorted(then.keys() - now.keys())]
    new = [f"{_title(now[key])} is new" for key in sorted(now.keys() - then.keys())]
    other = [
        f"{_title(now[key])}, not {_title(then[key])}"
        for key in sorted(then.keys() & now.keys())
        if any(then[key].get(field) != now[key].get(field) for field in ("arch", "pci_id"))
    ]
    found = gone + new + other
    return drift("hardware", not found, counted(then.values()), "; ".join(found) or counted(now.values()))


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names that are new, missing or changed; values are not shown."""
    return [
        f"{name} {'is new' if name not in then else 'is missing' if name not in now else 'has another value'}"
        for name in sorted({*then, *now})
        if name not in then or name not in now or str(then[name]) != str(now[name])
    ]


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a container's or an image's configuration."""
    return dict(entry.partition("=")[::2] for entry in config.get("Env") or [])


def counted(devices: Any) -> str:
    """2 x sm_90, x86_64."""
    arches: dict[str, int] = {}
    for device in devices:
        arches[str(device["arch"])] = arches.get(str(device["arch"]), 0) + 1
    return ", ".join(f"{n} x {arch}" if n > 1 else arch for arch, n in arches.items()) or "none"


def _devices(detection: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Devices by where they are: the bus address where there is one, else the position."""
    return {f"{d['vendor']} {d.get('pci_address') or d.get('index')}": d for d in detection.get("devices") or []}


def _accelerators(detection: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {key: device for key, device in _devices(detection).items() if device.get("kind") != "cpu"}


def _title(device: Mapping[str, Any]) -> str:
    return f"{device['name']} ({device['arch']}{', ' + device['pci_address'] if device.get('pci_address') else ''})"

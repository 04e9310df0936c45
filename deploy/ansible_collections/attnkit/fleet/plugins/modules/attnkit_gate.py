#!/usr/bin/python
"""The gate of a rollout: waits for the boot of a node's service and decides whether it may serve. Standard library only."""

from __future__ import annotations

DOCUMENTATION = r"""
module: attnkit_gate
short_description: Wait for a node's boot and decide whether it may serve
version_added: 0.1.0
description:
  - Follows the service's container until its boot report is in, its readiness file and health check agree, and the engine
    behind it has answered a completion; or until one of these has failed for good.
  - An engine that crash-loops may be ready for a moment each time. So the gate probes once more after a while, and fails if
    that is another start of the service.
  - A report or a readiness file from before the container's start counts for nothing.
  - With I(watch_dir) it sends the rollout's heartbeats to the node's watchdog (M(attnkit.fleet.attnkit_watch)) while it waits,
    and the confirmation once it passes.
  - A failed gate is a value (C(ok) is false, with C(reason)), so that the play can roll back and still say why.
options:
  run_dir:
    description: Folder on the node that holds C(report.json) and C(ready.json).
    type: path
    required: true
  image:
    description: Image with digest that must be running.
    type: str
  url:
    description: Base of the engine's OpenAI-compatible interface, as the node sees it. No completion is requested without it.
    type: str
  model:
    description: Model name for the completion. The default is the first that the engine serves.
    type: str
  api_key:
    description: Key for the engine's interface, if it requires one.
    type: str
  prompt:
    description: Text to complete.
    type: str
    default: The tests pass because
  max_tokens:
    description: Number of tokens to request.
    type: int
    default: 16
  timeout:
    description: Seconds to wait for the boot; V(0) probes once.
    type: int
    default: 900
  watch_dir:
    description: The watchdog's folder. Omit it if the service is only probed.
    type: path
  poll:
    description: Seconds between two probes.
    type: float
    default: 1.0
attributes:
  check_mode:
    description: Probes once and does not wait; C(ok) is the present state.
    support: full
  diff_mode:
    description: Changes nothing.
    support: none
extends_documentation_fragment:
  - attnkit.fleet.service
  - attnkit.fleet.service.gated
"""

EXAMPLES = r"""
- name: Wait for the boot report
  attnkit.fleet.attnkit_gate:
    container: attnkit
    run_dir: /var/lib/attnkit/run
    url: http://127.0.0.1:8000
  register: gate
"""

RETURN = r"""
ok:
  description: Whether the node may serve.
  returned: always
  type: bool
reason:
  description: Why it may not, empty if it may.
  returned: always
  type: str
summary:
  description: Verdict, backend, boot seconds and tokens per second of the report.
  returned: always
  type: dict
completion:
  description: What the engine answered.
  returned: if it was requested
  type: dict
report:
  description: The whole boot report, null if there is none.
  returned: always
  type: dict
events:
  description: The boot's events, one line of JSON each.
  returned: always
  type: list
  elements: str
log_tail:
  description: The last lines of the container's log.
  returned: if the gate failed
  type: list
  elements: str
"""

import json
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils import pending
from ..module_utils.arguments import GATED, SERVICE, Arguments
from ..module_utils.boot_report import summary
from ..module_utils.docker_api import Docker, DockerError
from ..module_utils.probe import Probe, probe

ARGUMENTS: Arguments = {
    **SERVICE,
    **GATED,
    "run_dir": {"type": "path", "required": True},
    "image": {"type": "str"},
    "url": {"type": "str"},
    "model": {"type": "str"},
    "api_key": {"type": "str", "no_log": True},
    "prompt": {"type": "str", "default": "The tests pass because"},
    "max_tokens": {"type": "int", "default": 16},
    "timeout": {"type": "int", "default": 900},
    "watch_dir": {"type": "path"},
    "poll": {"type": "float", "default": 1.0},
}


def ask(
    url: str, model: str | None, prompt: str, max_tokens: int, api_key: str | None = None, timeout: float = 120.0
) -> dict[str, Any]:
    """A completion from the engine.

    Args:
        url: base of its interface.
        model: the model's name; None for the first that it serves.
        prompt: the text.
        max_tokens: tokens to ask for.
        api_key: what it wants to see; None for nothing.
        timeout: seconds for each of the two answers.

    Raises:
        OSError, ValueError, KeyError: no answer, or not the answer of an OpenAI-compatible server.
    """
    key = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    if model is None:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/models", headers=key), timeout=timeout) as answer:
            model = json.load(answer)["data"][0]["id"]
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.0, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/completions", data=json.dumps(body).encode(), headers={"Content-Type": "application/json", **key}
    )
    before = time.monotonic()
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        document = json.load(answer)
    seconds = time.monotonic() - before
    tokens = int(document["usage"]["completion_tokens"])
    return {
        "model": model,
        "prompt": prompt,
        "text": document["choices"][0]["text"],
        "completion_tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1),
    }


def _probe(docker: Docker, p: dict[str, Any]) -> Probe:
    """One probe with the module's parameters; a Docker that does not answer decides nothing."""
    try:
        inspected = docker.container(p["container"])
        return probe(inspected, p["run_dir"], image=p["image"], node_type=p["node_type"], accept_planted=p["accept_planted"])
    except DockerError as error:
        return Probe(done=False, ok=False, reason=str(error), report=None)


def main() -> None:
    """The module's entry."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    p = module.params
    docker = Docker(p["docker_socket"])
    deadline = time.monotonic() + (0 if module.check_mode else p["timeout"])
    result: dict[str, Any] = {"changed": False}
    watch_dir = None if module.check_mode else p["watch_dir"]
    if watch_dir:
        pending.outlast(watch_dir)
    while True:
        if watch_dir:
            pending.renew(watch_dir)
        seen = _probe(docker, p)
        if seen.done or time.monotonic() >= deadline:
            break
        time.sleep(p["poll"])
    ok, reason = seen.ok, seen.reason
    if watch_dir and not ok and (itself := pending.how_it_went(watch_dir)):
        reason = f"{reason}; the node decided by itself: {itself}"
    if not seen.done and p["timeout"] and not module.check_mode:
        reason += f" after {p['timeout']} s"
    if ok and p["url"]:
        try:
            result["completion"] = ask(p["url"], p["model"], p["prompt"], p["max_tokens"], p["api_key"])
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            ok, reason = False, f"ready, but the engine gave no completion at {p['url']}: {error!r}"
        else:
            if not result["completion"]["completion_tokens"]:
                ok, reason = False, "the engine answered a completion with no tokens"
    unsettled = p["settle"] - seen.ready_for
    if ok and unsettled > 0 and p["timeout"] and not module.check_mode:
        time.sleep(unsettled)
        later = _probe(docker, p)
        if not later.ok:
            ok, reason, seen = False, f"it was ready and answered, and then: {later.reason}", later
        elif later.started != seen.started:
            ok, reason = False, f"it was ready and answered, but was started again within {p['settle']:g} s"
    if ok and watch_dir and not pending.confirm(docker, watch_dir, p["container"]):
        ok, reason = False, "it works, but its node had no heartbeat for too long and is reverting by itself"
    try:
        result["events"] = [
            line for line in docker.logs(p["container"], stdout=True, stderr=False, tail=500) if line.startswith("{")
        ]
        if not ok:
            result["log_tail"] = docker.logs(p["container"], stdout=True, stderr=True, tail=60)
    except DockerError as error:
        result.setdefault("events", [])
        result["log_tail"] = [str(error)]
    module.exit_json(ok=ok, reason=reason, report=seen.report, summary=summary(seen.report), **result)


if __name__ == "__main__":
    main()

"""The lock: one rollout a node, leftovers can be taken over, check mode takes nothing."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.attnkit.fleet.plugins.action.attnkit_lock import started

pytestmark = pytest.mark.slow


def test_one_at_a_time(tmp_path: Path, module: Any) -> None:
    path = tmp_path / "state" / "lock.json"
    alice, bob = ({"path": str(path), "owner": owner} for owner in ("alice 1", "bob 2"))

    assert module("attnkit_lock", alice, check=True)["holder"] == "alice 1"
    assert not path.exists(), "check mode takes no lock"

    assert not module("attnkit_lock", alice)["changed"]
    taken = json.loads(path.read_text(encoding="utf-8"))
    assert (taken["owner"], taken["run"]["computer"]) == ("alice 1", platform.node())
    path.write_text(json.dumps({**taken, "run": {**taken["run"], "computer": "another"}}), encoding="utf-8")
    assert module("attnkit_lock", alice)["holder"] == "alice 1", "the same run may ask again"

    for check in (False, True):
        refused = module("attnkit_lock", bob, check=check)
        assert refused["failed"] and "alice 1 has held the lock of this node" in refused["msg"]
    assert module("attnkit_lock", {**bob, "state": "free"})["holder"] == "alice 1", "nobody frees another's lock"
    assert path.exists()

    assert module("attnkit_lock", {**bob, "steal": True})["stolen_from"] == "alice 1"
    held = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**held, "run": {**held["run"], "computer": "another"}}), encoding="utf-8")
    old = time.time() - 7200
    os.utime(path, (old, old))
    assert module("attnkit_lock", alice)["stolen_from"] == "bob 2", "a lock older than an hour is a leftover"
    assert module("attnkit_lock", {**alice, "state": "free"})["holder"] is None
    assert not path.exists()


def test_a_lock_is_left_over_once_its_run_has_ended(tmp_path: Path, module: Any) -> None:
    """Each call here is a run of its own on this computer: while it lives it holds the node, afterwards it does not."""
    path = tmp_path / "lock.json"
    living = {"computer": platform.node(), "pid": os.getpid(), "started": started(os.getpid())}
    path.write_text(json.dumps({"owner": "alice 1", "run": living}), encoding="utf-8")
    bob = {"path": str(path), "owner": "bob 2"}
    refused = module("attnkit_lock", bob)
    assert refused["failed"] and "alice 1 has held the lock of this node" in refused["msg"]
    path.write_text(json.dumps({"owner": "alice 1", "run": {**living, "started": "Thu Jan 1 00:00:00 1970"}}), encoding="utf-8")
    assert module("attnkit_lock", bob, check=True)["stolen_from"] == "alice 1", "the number belongs to another process now"
    assert json.loads(path.read_text(encoding="utf-8"))["owner"] == "alice 1", "check mode takes nothing"
    assert module("attnkit_lock", bob)["stolen_from"] == "alice 1"
    assert module("attnkit_lock", {**bob, "owner": "carol 3"})["stolen_from"] == "bob 2", "the run of bob has ended"


def test_a_race_has_one_winner(tmp_path: Path) -> None:
    from ansible_collections.attnkit.fleet.plugins.modules.attnkit_lock import create

    path = str(tmp_path / "lock.json")
    assert [create(path, "a", None), create(path, "b", None)] == [True, False]
    assert json.loads(Path(path).read_text(encoding="utf-8"))["owner"] == "a"

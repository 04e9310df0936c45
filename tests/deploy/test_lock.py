"""The lock: one rollout a node, leftovers can be taken over, check mode takes nothing."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_one_at_a_time(tmp_path: Path, module: Any) -> None:
    path = tmp_path / "state" / "lock.json"
    alice, bob = ({"path": str(path), "owner": owner} for owner in ("alice 1", "bob 2"))

    assert module("attnkit_lock", alice, check=True)["holder"] == "alice 1"
    assert not path.exists(), "check mode takes no lock"

    assert not module("attnkit_lock", alice)["changed"]
    assert json.loads(path.read_text(encoding="utf-8")) == {"owner": "alice 1"}
    assert module("attnkit_lock", alice)["holder"] == "alice 1", "the same run may ask again"

    for check in (False, True):
        refused = module("attnkit_lock", bob, check=check)
        assert refused["failed"] and "alice 1 holds this node" in refused["msg"]
    assert module("attnkit_lock", {**bob, "state": "free"})["holder"] == "alice 1", "nobody frees another's lock"
    assert path.exists()

    assert module("attnkit_lock", {**bob, "steal": True})["stolen_from"] == "alice 1"
    old = time.time() - 7200
    os.utime(path, (old, old))
    assert module("attnkit_lock", alice)["stolen_from"] == "bob 2", "a lock older than an hour is a leftover"
    assert module("attnkit_lock", {**alice, "state": "free"})["holder"] is None
    assert not path.exists()


def test_a_race_has_one_winner(tmp_path: Path) -> None:
    from deploy.plugins.modules.attnkit_lock import create

    path = str(tmp_path / "lock.json")
    assert [create(path, "a"), create(path, "b")] == [True, False]
    assert json.loads(Path(path).read_text(encoding="utf-8")) == {"owner": "a"}

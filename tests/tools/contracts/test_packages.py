"""Our calls into the providers against the packages that PyPI serves: the quick ones here, all of them in the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from attnkit.backends.registry import get
from tools.contracts.check import check
from tools.contracts.table import CONTRACTS, Contract
from tools.docs.evidence import collect

SMALL = [contract for contract in CONTRACTS if contract.small]


@pytest.mark.slow
@pytest.mark.parametrize("contract", SMALL, ids=lambda contract: contract.id)
def test_run_calls_what_the_published_package_offers(contract: Contract, repo_root: Path) -> None:
    done = check(contract, repo_root / ".cache" / "contracts")
    assert done.ok, done.detail


def test_the_committed_report_is_of_this_table_and_clean(repo_root: Path) -> None:
    report = json.loads((repo_root / "docs" / "reports" / "contracts.json").read_text(encoding="utf-8"))
    assert [(c["backend"], c["provider"], c["package"]) for c in report["checks"]] == [
        (c.backend, c.provider, c.package) for c in CONTRACTS
    ]
    for contract, found in zip(CONTRACTS, report["checks"], strict=True):
        assert found["ok"], found["detail"]
        assert contract.installed or found["version"] == contract.version


def test_every_contract_is_of_a_provider_for_its_architecture() -> None:
    for contract in CONTRACTS:
        providers = {p.name: p for p in get(contract.backend).providers}
        assert contract.provider in providers, contract.id
        patterns = [p for ps in providers[contract.provider].capability.archs.values() for p in ps]
        assert any(contract.arch.startswith(p.rstrip("*")) for p in patterns), contract.id


def test_evidence_reads_the_report(repo_root: Path, tmp_path: Path) -> None:
    shutil.copy(repo_root / "docs" / "reports" / "contracts.json", tmp_path)
    found = {(e.backend, e.provider, e.target.split()[0]) for e in collect(tmp_path, tmp_path) if e.word == "contract"}
    assert found == {(c.backend, c.provider, c.package) for c in CONTRACTS}

"""Each page of docs/how-to is followed, step by step, in a copy of the repository."""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.docs import how_to

Follow = Callable[[str], Callable[..., "subprocess.CompletedProcess[str]"]]
DATA = Path(__file__).with_name("data")


def test_the_example_is_followed(tmp_path: Path, readers_environment: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    printed = how_to.follow(DATA / "example.md", folder, readers_environment)
    assert len(printed) == 3
    assert (folder / "numbers.txt").read_text() == "one\n2\nthree\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```sh\nfalse\ntrue\n```\n", "page.md:1: the commands ended with 1"),
        ("```sh\necho one\n```\n\n```text\ntwo\n```\n", "page.md:5: the commands did not print 'two' but:\none"),
        ("```text\ntwo\n```\n", "page.md:1: a text block says what commands print"),
        ('```python title="../x.py"\n```\n', "page.md:1: ../x.py is outside"),
        ('```diff title="x"\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n```\n', "page.md:1: this is no patch of x"),
        ('```diff title="x"\n--- a/y\n+++ b/y\n@@ -0,0 +1 @@\n+b\n```\n', "page.md:1: this is no patch of x"),
        ("```sh\ntrue\n", "page.md:1: nothing closes this fence"),
        ("```sh file=x\n```\n", "page.md:1: '```sh file=x': a fence is"),
    ],
)
def test_a_page_that_is_wrong_is_noticed(
    tmp_path: Path, environment: Callable[..., dict[str, str]], text: str, says: str
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    folder = tmp_path / "work"
    folder.mkdir()
    with pytest.raises(how_to.PageError) as error:
        how_to.follow(page, folder, environment())
    assert says in str(error.value)


@pytest.fixture
def follow(repo_root: Path, checkout: Path, readers_environment: dict[str, str]) -> Follow:
    """follow("add-a-backend") → run(*command), which runs a command in the checkout once the page was followed there."""

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=checkout, env=readers_environment, capture_output=True, text=True, check=False)

    def followed(page: str) -> Callable[..., subprocess.CompletedProcess[str]]:
        how_to.follow(repo_root / "docs" / "how-to" / f"{page}.md", checkout, readers_environment)
        return run

    return followed


def test_every_page_has_a_test_here(repo_root: Path) -> None:
    pages = {path.stem for path in (repo_root / "docs" / "how-to").glob("*.md")} - {"index"}
    tested = {name.removeprefix("test_").replace("_", "-") for name in globals() if name.startswith("test_add_")}
    assert pages == tested


@pytest.mark.slow
def test_add_a_backend(follow: Follow) -> None:
    run = follow("add-a-backend")
    rows = json.loads(run("attnkit", "backends", "--json").stdout)
    (row,) = (row for row in rows if row["name"] == "EXAMPLE_ATTN")
    assert row["usable"], row["why_not"]
    code = (
        "import torch; from attnkit import api\n"
        "query, key, value = torch.randn(3, 5, 2, 16)\n"
        "starts = torch.tensor([0, 5], dtype=torch.int32)\n"
        "made = api.varlen_attention(query, key, value, starts, softmax_scale=0.25, backend='EXAMPLE_ATTN')\n"
        "print(made.kernel, *made.out.shape)"
    )
    assert run("python", "-c", code).stdout == "example_torch 5 2 16\n"


@pytest.mark.slow
def test_add_a_node_type(follow: Follow) -> None:
    run = follow("add-a-node-type")
    command = ("attnkit", "select", "--node", "t10", "--assume-installed", "--json")
    plan = json.loads(run("env", "ATTNKIT_PROFILES=profiles", *command).stdout)
    assert (plan["platform"], plan["decision"]["device"]["arch"]) == ("cuda-turing", "sm_75")


@pytest.mark.slow
def test_add_a_platform(follow: Follow) -> None:
    run = follow("add-a-platform")
    assert "name: attnkit-cpu-arm" in run("cat", "deploy/kubernetes/cpu-arm.yaml").stdout
    assert run("python", "-m", "deploy.kubernetes.generate", "--check").returncode == 0


@pytest.mark.slow
def test_add_a_vllm_version(follow: Follow, checkout: Path) -> None:
    run = follow("add-a-vllm-version")
    names = json.loads(run("python", "-m", "attnkit.cli", "resolve", "FLASH_ATTN", "--vllm", "0.34.0", "--json").stdout)
    assert names["flag"] == ["--attention-backend", "FLASH_ATTN"]
    file = "vllm/v1/attention/backends/registry.py"
    with zipfile.ZipFile(checkout / "vllm.whl", "w") as wheel:
        wheel.writestr(
            file, "class AttentionBackendEnum:\n    FLASH_ATTN = 'a'\n    CUSTOM = None\n\n    def path(self): ...\n"
        )
    assert run("python", "read_names.py", "vllm.whl").stdout == f"{file}:1 [FLASH_ATTN, CUSTOM]\n"

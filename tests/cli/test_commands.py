"""The command line as a contract: exit codes, error texts, JSON, and what is not imported."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_version(cli: Cli) -> None:
    import attnkit

    done = cli("--version")
    assert (done.returncode, done.stdout) == (0, f"attnkit {attnkit.__version__}\n")


def test_help_names_every_command_of_the_contract(cli: Cli) -> None:
    text = cli("--help").stdout
    for command in ("detect", "backends", "select", "resolve", "selftest", "boot", "kernels", "report", "tiny-model"):
        assert command in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("group", [(), ("kernels",)])
def test_summaries_are_short_and_none_is_cut_off(group: tuple[str, ...], cli: Cli) -> None:
    lines = cli(*group, "--help").stdout.partition("Commands:\n")[2].splitlines()
    summaries = [line.split(maxsplit=1)[1] for line in lines]
    assert len(summaries) >= 3
    assert [text for text in summaries if len(text) > 60 or not text.endswith(".") or text.endswith("..")] == []


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("selftest", ("--level [quick|standard|extended]", "mask-off-by-one", "rtx-2080-ti", "deepseek-v3")),
        ("boot", ("--level [quick|standard|extended]", "speculative-tree")),
        ("resolve", ("--platform [cuda|rocm|xpu|tpu|cpu]",)),
        ("bench", ("--dtype [bfloat16|float16]", "dual_chunk")),
        ("select", ("mi300x", "long-context")),
    ],
)
def test_help_shows_what_may_be_chosen(command: str, shown: tuple[str, ...], cli: Cli) -> None:
    text = cli(command, "--help").stdout
    assert [name for name in shown if name not in text] == []
    assert max(map(len, text.splitlines())) <= 80


def test_a_node_type_of_ones_own_is_among_the_choices(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "my-box.yaml").write_text("")
    assert "my-box" in cli("select", "--help", env={"ATTNKIT_PROFILES": str(tmp_path)}).stdout


def test_an_old_option_name_works_and_the_new_one_is_told_once(cli: Cli) -> None:
    note = "note: --prove is now --inject-faults; the old name still works"
    done = cli("selftest", "--prove", "--prove", "--fault", "scael")
    assert done.stderr.splitlines()[0] == note
    assert done.stderr.count("note:") == 1
    assert "unknown fault 'scael'" in done.stderr
    assert "--prove" not in cli("selftest", "--help").stdout
    assert "note:" not in cli("selftest", "--inject-faults", "--fault", "scael").stderr


@pytest.mark.parametrize("old", ["--planted-answer", "ATTNKIT_PLANTED_ANSWER"])
def test_the_simulated_device_has_its_old_names_too(old: str, cli: Cli, tmp_path: Path) -> None:
    files = ("--report", tmp_path / "report.json", "--ready", tmp_path / "ready.json")
    given = ((old, "maybe"), {}) if old.startswith("--") else ((), {old: "maybe"})
    done = cli("boot", *files, *given[0], env=given[1])
    assert done.returncode == 2
    assert "'maybe'. Known: right, wrong, crash, hang" in done.stderr
    assert ("note: --planted-answer is now --simulated-device" in done.stderr) == old.startswith("--")


def test_an_engine_s_option_of_an_old_name_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    files = ("--report", tmp_path / "report.json", "--ready", tmp_path / "ready.json")
    done = cli("boot", *files, "--simulated-device", "right", "--", "echo", "--planted-answer")
    assert "--planted-answer" in json.loads((tmp_path / "report.json").read_text())["engine"]["argv"]
    assert "note:" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("detcet",), "No such command 'detcet'. Did you mean 'detect'?"),
        (("select", "--devise", "sm_90"), "--devise"),
        (("resolve", "FLASH_ATTN"), "Missing option '--vllm'"),
        (("select", "--backend", "FLASHATN"), "unknown backend 'FLASHATN'. Did you mean FLASH_ATTN"),
        (("select", "--node", "h10O"), "unknown node type 'h10O'. Did you mean h100"),
        (("select", "--workload", "txt"), "unknown workload 'txt'. Did you mean text"),
        (("select", "--device", "volta"), "unknown device architecture 'volta'"),
        (("select", "--device", "sm_7"), "unknown device architecture 'sm_7'. Did you mean sm_87, sm_75 or sm_72?"),
        (("select", "--device", "sm_999"), "unknown device architecture 'sm_999'. Did you mean sm_90"),
        (("select", "--device", "gfx9"), "unknown device architecture 'gfx9'. Did you mean gfx950"),
        (("select", "--device", ""), "unknown device architecture ''. Known: aarch64"),
        (("select", "--device", "H1000"), "A node type is given with --node. Did you mean h100"),
        (("kernels", "list", "--target", "sm_7"), "unknown target 'sm_7'"),
        (("select", "--node", "h100", "--device", "gfx942"), "node type h100 has sm_90, not gfx942"),
        (("selftest", "--backend", "TORCH_SPDA"), "unknown backend 'TORCH_SPDA'. Did you mean TORCH_SDPA"),
        (("selftest", "--level", "fast"), "unknown self-test level 'fast'"),
        (("selftest", "--fault", "scael"), "unknown fault 'scael'. Did you mean scale"),
        (("resolve", "FLASH_ATTN", "--vllm", "0.33.0", "--platform", "cdua"), "unknown platform 'cdua'. Did you mean cuda"),
        (("bench", "--dtype", "bflaot16"), "unknown dtype 'bflaot16'. Did you mean bfloat16"),
        (("bench", "prefil"), "unknown benchmark 'prefil'. Did you mean prefill"),
        (("bench", "cpu", "prefill"), "cpu is a benchmark of its own"),
        (("selftest", "--json", "/proc/self/nowhere/x.json"), "cannot write /proc/self/nowhere/x.json"),
        (("report", "no-such-file.json"), "cannot read report no-such-file.json: No such file"),
        (("kernels", "list"), "--target is missing"),
        (("kernels", "biuld"), "No such command 'biuld'. Did you mean 'build'?"),
        (("kernels", "verify", "--dir", "nowhere"), "nowhere/manifest.json: no such file"),
        (("boot", "--level", "fast", "--report", "r.json", "--ready", "s.json"), "unknown self-test level 'fast'"),
    ],
)
def test_wrong_usage_is_exit_code_2_without_a_traceback(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "" or arguments[0] == "boot"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed: tests/engines/vllm drive it")
def test_vllms_own_backend_without_vllm_is_inconclusive(cli: Cli) -> None:
    done = cli("selftest", "--backend", "vllm:TRITON_ATTN")
    assert done.returncode == 4
    assert "vLLM absent" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_detect_here_and_elsewhere(cli: Cli, trees: Path) -> None:
    here = json.loads(cli("detect", "--json").stdout)
    assert here["devices"][-1]["kind"] == "cpu"
    tree = next(path for path in sorted(trees.iterdir()) if "h100" in path.name)
    there = json.loads(cli("detect", "--json", "--root", tree).stdout)
    assert there["devices"][0]["arch"] == "sm_90"
    assert there["node_type"] == "h100"


@pytest.mark.parametrize(("arch", "vendor"), [("sm_75", "nvidia"), ("gfx942", "amd"), ("xe-hpg", "intel")])
def test_select_for_another_device_assumes_its_image_and_says_so(cli: Cli, arch: str, vendor: str) -> None:
    plan = json.loads(cli("select", "--device", arch, "--json").stdout)
    assert plan["decision"]["device"]["vendor"] == vendor
    assert plan["installed"] == f"assumed from platform {plan['platform']} image"
    assert plan["chosen"]["backend"] == plan["decision"]["accepted"][0]["backend"]
    assert all(reason["message"] for rejected in plan["decision"]["rejected"] for reason in rejected["reasons"])


def test_select_here_looks_at_this_environment(cli: Cli) -> None:
    plan = json.loads(cli("select", "--json").stdout)
    assert plan["installed"] == "this environment"
    assert plan["node_type_source"] == "detected"


def test_an_explicit_backend_that_cannot_serve_is_exit_code_3(cli: Cli) -> None:
    done = cli("select", "--device", "gfx942", "--backend", "TURING_ATTN", "--json")
    assert done.returncode == 3
    plan = json.loads(done.stdout)
    assert plan["chosen"] is None
    assert [r["backend"] for r in plan["decision"]["rejected"]].count("TURING_ATTN") == 1


def test_human_output_fits_80_columns(cli: Cli) -> None:
    for arguments in (("detect",), ("backends",), ("select", "--device", "sm_75"), ("resolve", "XFORMERS", "--vllm", "0.33.0")):
        done = cli(*arguments)
        assert done.stderr == ""
        assert done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 80, arguments


def test_backends_lists_every_registered_one(cli: Cli) -> None:
    from attnkit.backends.registry import all_backends

    rows = json.loads(cli("backends", "--json").stdout)
    assert [row["name"] for row in rows] == [backend.name for backend in all_backends()]
    assert all(row["usable"] or row["why_not"] for row in rows)


def test_resolve_says_what_the_version_wants(cli: Cli) -> None:
    new = json.loads(cli("resolve", "TRITON_ATTN", "--vllm", "0.33.0", "--json").stdout)
    old = json.loads(cli("resolve", "FLASHINFER", "--vllm", "0.10.2", "--json").stdout)
    assert new["flag"] and "TRITON_ATTN" in " ".join(new["flag"])
    assert old["env"] == {"VLLM_ATTENTION_BACKEND": "FLASHINFER"}


_HEAVY = ("torch", "jax", "triton", "vllm", "numpy", "transformers", "flashinfer", "flash_attn", "structlog", "jinja2")
_FOR_TABLES = ("rich",)
_FOR_PROFILES = ("pydantic", "yaml", "attnkit.profiles")


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (("detect",), ()),
        (("detect", "--json"), _FOR_TABLES),
        (("select",), ()),
        (("select", "--device", "sm_90", "--json"), _FOR_TABLES),
        (("backends", "--json"), _FOR_TABLES),
        (("resolve", "FLASH_ATTN", "--vllm", "0.33.0", "--json"), _FOR_TABLES),
        (("--help",), (*_FOR_TABLES, *_FOR_PROFILES)),
        (("--version",), (*_FOR_TABLES, "yaml", "attnkit.profiles")),
    ],
    ids=" ".join,
)
def test_quick_commands_import_no_more_than_they_use(
    arguments: tuple[str, ...], absent: tuple[str, ...], tmp_path: Path, environment: Callable[..., dict[str, str]]
) -> None:
    """Nor does pydantic look through the metadata of everything that is installed, or packaging's parser get compiled."""
    absent = (*_HEAVY, "prometheus_client", "asyncio", "packaging.requirements", *absent)
    code = (
        "import sys\n"
        "from attnkit.cli.app import main\n"
        f"try:\n    main({list(arguments)!r})\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "loader = sys.modules.get('pydantic.plugin._loader')\n"
        "assert loader is None or loader._plugins is None, 'searched for plugins of pydantic'\n"
        f"print('ABSENT', sorted(set({absent!r}) & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ABSENT []"


def test_env_names_versions_devices_and_variables_without_secrets(cli: Cli, trees: Path) -> None:
    tree = next(path for path in sorted(trees.iterdir()) if "h100" in path.name)
    variables = {"VLLM_API_KEY": "sesame-open-123", "VLLM_LOGGING_LEVEL": "INFO"}
    done = cli("env", "--json", "--root", tree, env=variables)
    found = json.loads(done.stdout)
    assert found["node_type"] == "h100" and found["devices"][0].endswith("(sm_90)")
    assert {"attnkit", "python"} <= set(found["versions"])
    assert found["variables"]["VLLM_LOGGING_LEVEL"] == "INFO"
    assert "sesame-open-123" not in done.stdout
    text = cli("env", "--root", tree, env=variables).stdout
    assert "attnkit" in text and "sesame-open-123" not in text


def test_select_shows_every_kind_of_layer_with_its_choice(cli: Cli, tmp_path: Path) -> None:
    cases = json.loads((Path(__file__).parents[1] / "data/models.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(cases["gemma4"]["config"]))
    done = cli("select", "--device", "sm_90", "--model", path, "--json")
    assert done.returncode == 0
    layers = json.loads(done.stdout)["layers"]
    seen = [(row["role"], row["count"], row["spec"]["head_dim"], row["window"], row["backend"]) for row in layers]
    assert seen == [
        ("decoder", 25, 256, 1024, "TORCH_SDPA"),
        ("decoder", 5, 512, None, "TORCH_SDPA"),
        ("vision", 27, 72, None, "FLASH_ATTN"),
    ]
    refused = {row["backend"]: str(row["reasons"]) for row in json.loads(done.stdout)["decision"]["rejected"]}
    for name in ("FLASH_ATTN", "FLASHINFER"):
        assert "head_dim 512 is not supported" in refused[name]
    text = cli("select", "--device", "sm_90", "--model", path).stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "25      decoder bfloat16  16/8 × 256    window 1024" in text


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [("mamba", 0, "attention-free"), ("t5", 3, "relative_bias"), ("sparse-mla", 3, "*_SPARSE"), ("mpt", 0, "ALiBi")],
)
def test_select_says_what_a_model_s_attention_is(cli: Cli, tmp_path: Path, name: str, code: int, says: str) -> None:
    cases = json.loads((Path(__file__).parents[1] / "data/models.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(cases[name]["config"]))
    done = cli("select", "--device", "sm_80", "--model", path)
    assert (done.returncode, says in done.stdout) == (code, True)


def test_select_of_a_model_that_nobody_has_read_is_not_understood(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "from-tomorrow", "hidden_size": 64, "num_attention_heads": 2}')
    done = cli("select", "--device", "sm_90", "--model", path)
    assert done.returncode == 4
    assert "not understood: field 'model_type'" in done.stderr
    path.write_text('{"model_type": "llama", "num_key_value_heads": "8"}')
    assert cli("select", "--device", "sm_90", "--model", path).returncode == 2

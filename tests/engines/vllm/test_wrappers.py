"""What people put in front of `vllm serve`."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from attnkit.engines.vllm import command as vllm_command
from attnkit.hardware.device import Device

H100 = Device("nvidia", "gpu", "H100", "sm_90")
SERVE = ("vllm", "serve", "org/model", "--port", "9000")


@pytest.mark.parametrize(
    "argv",
    [
        SERVE,
        ("numactl", "-N", "0", "--membind=0", *SERVE),
        ("numactl", "--cpunodebind", "0", *SERVE),
        ("env", "-u", "A", "X=1", *SERVE),
        ("nice", "-n", "5", "ionice", "-c2", *SERVE),
        ("taskset", "-c", "0-3", *SERVE),
        ("taskset", "ff", *SERVE),
        ("timeout", "-k", "5", "1h", *SERVE),
        ("tini", "--", *SERVE),
        ("nohup", "setsid", *SERVE),
        ("sh", "-c", shlex.join(SERVE)),
        ("bash", "-lc", "source /venv/bin/activate && exec " + shlex.join(SERVE)),
        ("bash", "-c", "export X=1; X=2 numactl -N 1 " + shlex.join(SERVE)),
        ("env", "X=1", "bash", "-c", "nice vllm serve 'org/model' --port 9000"),
        ("python3", "-m", "vllm.entrypoints.openai.api_server", "--model", "org/model", "--port", "9000"),
        ("numactl", "-N", "0", "python", "-m", "vllm.entrypoints.cli.main", "serve", "org/model", "--port", "9000"),
    ],
)
def test_a_wrapper_is_seen_through_and_kept(argv: tuple[str, ...], installed) -> None:
    installed("0.33.0")
    command = vllm_command.recognise(argv)
    assert command is not None
    assert (command.model, command.address) == ("org/model", ("127.0.0.1", 9000))
    assert vllm_command.unseen(argv) is None
    launched = vllm_command.prepare(command, backend="TRITON_ATTN", device=H100, environment={}).argv
    words = shlex.split(launched[-1]) if argv[-2] in ("-c", "-lc") else list(launched)
    assert words[-2:] == ["--attention-backend", "TRITON_ATTN"]
    assert launched[: argv.index("vllm") if "vllm" in argv else 1] == argv[: argv.index("vllm") if "vllm" in argv else 1]


def test_variables_of_a_wrapper_count_as_the_engines() -> None:
    command = vllm_command.recognise(("env", "ATTNKIT_VLLM_BACKEND=XFORMERS", "VLLM_API_KEY=k", "vllm", "serve", "m"))
    assert command is not None
    assert vllm_command.explicit_backend(None, command, {}) == "XFORMERS"
    assert command.api_key({}) == "k"


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("bash", "start-vllm.sh"), "mentions vllm, but"),
        (("sh", "-c", "vllm serve $MODEL"), "mentions vllm, but"),
        (("sh", "-c", "vllm serve m | tee log"), "mentions vllm, but"),
        (("sh", "-c", "vllm serve m > log"), "mentions vllm, but"),
        (("ray", "start"), "is not one that attnkit knows"),
    ],
)
def test_what_cannot_be_seen_through_is_a_warning(argv: tuple[str, ...], says: str) -> None:
    assert vllm_command.recognise(argv) is None
    text = vllm_command.unseen(argv)
    assert text is not None and says in text and "neither handed over nor tested" in text
    assert vllm_command.unseen(()) is None


@pytest.mark.parametrize(
    ("words", "model"),
    [
        (("--port", "9000", "m"), "m"),
        (("--enforce-eager", "m", "--port", "1"), "m"),
        (("--port=9000", "--no-enable-prefix-caching", "m"), "m"),
        (("--trust_remote_code", "m"), "m"),
        (("--served-model-name", "a", "b", "--port", "1", "m"), "m"),
        (("-tp", "2", "m"), "m"),
        (("--port", "9000"), None),
        (("--port", "9000", "--model", "m"), "m"),
    ],
)
def test_the_model_is_found_wherever_it_stands(words: tuple[str, ...], model: str | None) -> None:
    command = vllm_command.recognise(("vllm", "serve", *words))
    assert command is not None and command.model == model


def test_the_file_of_config_is_read_and_the_command_line_wins(tmp_path: Path, installed) -> None:
    installed("0.33.0")
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: org/other\nport: 9000\ntensor-parallel-size: 2\nattention-config:\n  flash_attn_version: 2\nheadless: false\n"
    )
    command = vllm_command.recognise(("vllm", "serve", "--config", str(file), "--port", "9001"))
    assert command is not None
    assert (command.model, command.address, command.headless) == ("org/other", ("127.0.0.1", 9001), False)
    assert command.option("--tensor-parallel-size", "-tp") == "2"
    launched = vllm_command.prepare(command, backend="FLASH_ATTN", device=H100, environment={}).argv
    assert launched == ("vllm", "serve", "--config", str(file), "--port", "9001", "--attention-backend", "FLASH_ATTN")
    file.write_text("attention-backend: TRITON_ATTN\n")
    named = vllm_command.recognise(("vllm", "serve", "m", "--config", str(file)))
    assert named is not None and vllm_command.explicit_backend(None, named, {}) == "TRITON_ATTN"


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "port: 1\nport: 2\n"])
def test_a_config_file_that_is_none_is_wrong_usage(tmp_path: Path, text: str) -> None:
    from attnkit.errors import UsageError

    (tmp_path / "serve.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"serve\.yaml"):
        vllm_command.recognise(("vllm", "serve", "m", "--config", str(tmp_path / "serve.yaml")))
    with pytest.raises(UsageError, match="missing"):
        vllm_command.recognise(("vllm", "serve", "m", "--config", str(tmp_path / "missing.yaml")))


@pytest.mark.parametrize("revision", [None, "main", "v1", "c0ffee"])
def test_a_model_in_the_hubs_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    folder = tmp_path / "hub/models--org--model"
    (folder / "snapshots/c0ffee").mkdir(parents=True)
    (folder / "snapshots/c0ffee/config.json").write_text("{}")
    (folder / "refs").mkdir()
    for name in ("main", "v1"):
        (folder / "refs" / name).write_text("c0ffee\n")
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    command = vllm_command.recognise(("vllm", "serve", "org/model", *(("--revision", revision) if revision else ())))
    assert command is not None and command.local_model == folder / "snapshots/c0ffee"
    for words in (("org/absent",), ("org/model", "--revision", "v2"), ("../..",)):
        elsewhere = vllm_command.recognise(("vllm", "serve", *words))
        assert elsewhere is not None and elsewhere.local_model is None

"""Secrets are masked by name and by value, and nothing else is."""

from __future__ import annotations

import pytest

from attnkit.boot.redact import MASK, Redactor

ARGV = ["vllm", "serve", "m", "--api-key", "sk1", "long-secret-9", "--port", "80", "--hf-token=hf_x1"]
SECRETS = Redactor(
    ARGV, {"HF_TOKEN": "tok-12345", "AWS_SECRET_ACCESS_KEY": "A/b+c=def", "PATH": "/usr/bin", "PG_PASSWORD": "on"}
)


def test_a_command_line_keeps_its_names() -> None:
    assert SECRETS.command(ARGV) == ["vllm", "serve", "m", "--api-key", MASK, MASK, "--port", "80", f"--hf-token={MASK}"]
    assert SECRETS.command(["HF_TOKEN=x", "run"]) == [f"HF_TOKEN={MASK}", "run"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("it said tok-12345, A/b+c=def", f"it said {MASK}, {MASK}"),
        ("key long-secret-9 refused", f"key {MASK} refused"),
        ("http://user:hunter2@host/p", f"http://user:{MASK}@host/p"),
        ("https://h/x?token=abc&y=2", f"https://h/x?token={MASK}&y=2"),
        ("non-default args: {'api_key': ['k1'], 'n': 1}", f"non-default args: {{'api_key': ['{MASK}'], 'n': 1}}"),
        ("Authorization: Bearer abcdefgh", f"Authorization: Bearer {MASK}"),
        ("with hf_abcdefghijklmnopqrst", f"with {MASK}"),
    ],
)
def test_text_is_masked_by_value_and_shape(text: str, masked: str) -> None:
    assert SECRETS.text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "--max-num-batched-tokens 8192 --tokenizer m --kv-cache-dtype fp8",
        "key must be [num_tokens, num_kv_heads, head_dim], as query",
        "num_key_value_heads is 3; 32 tokens from tiny on http://127.0.0.1:8000/health",
        "turned on, keyed, basic attention",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert SECRETS.text(text) == text


def test_documents_are_masked_by_their_keys_and_bytes_that_are_no_text_are_replaced() -> None:
    document = {"env": {"HF_TOKEN": "x", "A": "1"}, "argv": ["a", "--api-key", "z"], "n": 3, "proof_key": "ab", "t": "b\udcff"}
    assert SECRETS.plain(document) == {
        "env": {"HF_TOKEN": MASK, "A": "1"},
        "argv": ["a", "--api-key", MASK],
        "n": 3,
        "proof_key": "ab",
        "t": "b?",
    }

"""A model in the Hugging Face hub's cache on this machine; nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def cached_snapshot(
    repository: str, revision: str | None, download_dir: str | None, environment: Mapping[str, str]
) -> Path | None:
    """The folder of a cached snapshot that has a configuration; None where there is none.

    Args:
        repository: "owner/name".
        revision: a branch, tag or commit; None: main.
        download_dir: vLLM's `--download-dir`, a cache of its own.
        environment: HF_HUB_CACHE, HUGGINGFACE_HUB_CACHE, HF_HOME, XDG_CACHE_HOME and HOME say where the cache is
            (huggingface_hub/constants.py).
    """
    if not _REPOSITORY.fullmatch(repository) or ".." in repository:
        return None
    folder = _cache(download_dir, environment) / f"models--{repository.replace('/', '--')}"
    wanted = revision or "main"
    try:
        commit = (folder / "refs" / wanted).read_text(encoding="utf-8").strip()[:100]
    except (OSError, UnicodeDecodeError, ValueError):
        commit = wanted  # a commit has no ref of its own
    snapshot = folder / "snapshots" / Path(commit).name
    return snapshot if any((snapshot / name).is_file() for name in ("config.json", "params.json")) else None


def _cache(download_dir: str | None, environment: Mapping[str, str]) -> Path:
    if download_dir:
        return Path(download_dir).expanduser()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(name):
            return Path(environment[name]).expanduser()
    home = environment.get("HF_HOME")
    if not home:
        home = f"{environment.get('XDG_CACHE_HOME') or environment.get('HOME', '~') + '/.cache'}/huggingface"
    return Path(home).expanduser() / "hub"

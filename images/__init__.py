"""Builds, inspects and bundles the container images; its modules run from the checkout (`python -m images.builder.build`)."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "images"
CACHE = ROOT / ".cache"
"""What a build keeps between runs; never committed."""

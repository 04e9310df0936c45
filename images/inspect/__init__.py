"""Checks built images and writes what was found to docs/reports/images and docs/images.md."""

from images import ROOT

REPORTS = ROOT / "docs" / "reports" / "images"

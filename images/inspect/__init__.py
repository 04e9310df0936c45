"""Checks built images and writes what was found to docs/reports/images and docs/reference/images.md."""

from images import ROOT

REPORTS = ROOT / "docs" / "reports" / "images"

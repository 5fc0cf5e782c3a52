"""Says which copy of the package is tested, and refuses the checkout's where the installed one is meant."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import scanprior.sim.metrics

WHERE = Path(scanprior.sim.metrics.__file__).resolve().parents[1]


def pytest_configure() -> None:
    if os.environ.get("SCANPRIOR_INSTALLED") and Path(sys.prefix).resolve() not in WHERE.parents:
        pytest.exit(f"the installed package was to be tested, but scanprior is imported from {WHERE}", returncode=3)


def pytest_report_header() -> str:
    return f"scanprior: {WHERE}"

"""What tests with real servers share."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Generator
from pathlib import Path

import pytest

# Lengths that end inside, at and behind blocks; longer than a window, and than a chunk of prefill.
LENGTHS = (17, 100, 129, 333, 600)


@pytest.fixture
def logs(request: pytest.FixtureRequest) -> Path:
    """Where the servers of a test write what they say."""
    name = re.sub(r"[^-\w]+", "-", request.node.name).strip("-")
    where = Path(os.environ["KVLINK_TEST_DIR"]) / name
    where.mkdir(parents=True, exist_ok=True)
    for old in where.glob("*.log"):
        old.unlink()
    return where


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that failed shows what its servers said: their errors and warnings, and the end."""
    report = yield
    if report.failed and "logs" in getattr(item, "funcargs", {}):
        for log in sorted(item.funcargs["logs"].glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()
            alarms = [line for line in lines[:-30] if re.search(r"ERROR|WARNING", line)]
            report.sections.append((log.name, "\n".join([*alarms[-40:], "...", *lines[-30:]])))
    return report


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Five prompts."""
    numbers = random.Random(5)
    return [[numbers.randrange(256) for _ in range(length)] for length in LENGTHS]

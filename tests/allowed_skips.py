"""The option `--allowed-skips` of pytest. It needs no torch, so that sessions of a few tests start quickly."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--allowed-skips",
        type=Path,
        metavar="FILE",
        help="fail if a test is skipped for a reason that no line of FILE, a regular expression, matches",
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if a test was skipped for a reason that is not allowed. xdist's workers do not see all tests."""
    file = session.config.getoption("--allowed-skips")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if file is None or reporter is None or hasattr(session.config, "workerinput"):
        return
    reasons = [reason_of(report) for report in reporter.stats.get("skipped", ())]
    surprises = unexpected_skips(reasons, file.read_text(encoding="utf-8"))
    if surprises:
        reporter.write_line("\nskipped, although .ci/run provides what the tests need:", red=True)
        for reason in surprises:
            reporter.write_line(f"  {reason}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def reason_of(report: pytest.TestReport) -> str:
    """The reason of a skipped test, without pytest's prefix."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def unexpected_skips(reasons: Sequence[str], allowed: str) -> list[str]:
    """The reasons that no line of `allowed` matches, each once. What follows a # on a line is a comment."""
    patterns = [line.split("#")[0].strip() for line in allowed.splitlines()]
    return [
        reason
        for reason in dict.fromkeys(reasons)
        if not any(re.match(pattern, reason) for pattern in patterns if pattern)
    ]

"""Programs that tests run beside poller: installed when they are missing, for a test that did not run has proved nothing."""

from __future__ import annotations

import shutil
import subprocess

import pytest

#: The Debian package of a program that is not called like it.
PACKAGES = {"cc": "gcc", "java": "default-jdk-headless", "javac": "default-jdk-headless", "node": "nodejs"}
INSTALLED_WITHIN = 600.0


def need(*programs: str) -> None:
    """Go on when all `programs` are on the path; install the missing ones, or fail with how to."""
    missing = [one for one in programs if shutil.which(one) is None]
    if not missing:
        return
    packages = sorted({PACKAGES.get(one, one) for one in missing})
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    if shutil.which("apt-get"):
        for command in (["apt-get", "update"], install):
            subprocess.run(command, check=False, capture_output=True, timeout=INSTALLED_WITHIN)
    still = [one for one in missing if shutil.which(one) is None]
    if still:
        pytest.fail(f"this machine has no {', '.join(still)}: as root, {' '.join(install)}", pytrace=False)

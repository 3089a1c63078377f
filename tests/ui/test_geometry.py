"""The path editor's pure half under Node: the system's, or the one that Playwright brings along."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def node():
    found = shutil.which("node")
    if found:
        return found
    try:
        import playwright
    except ImportError:
        return None
    brought = Path(playwright.__file__).parent / "driver" / "node"
    return str(brought) if brought.is_file() else None


@pytest.mark.skipif(node() is None, reason="no Node.js on this machine and no Playwright that brings one")
def test_the_editors_geometry():
    done = subprocess.run([node(), "--test", str(ROOT / "tests" / "ui" / "geometry.test.mjs")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr

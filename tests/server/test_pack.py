"""The folder as a package: light, lazy, free of dependencies."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def in_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_takes_no_time_and_nothing_heavy():
    seconds, heavy = in_fresh_python(
        "import sys, time; t = time.perf_counter(); import attention_loom; d = time.perf_counter() - t\n"
        "print(d, [m for m in ('torch', 'triton', 'comfy', 'numpy') if m in sys.modules], sep=';')"
    ).split(";")
    assert float(seconds) < 0.3
    assert heavy == "[]"


def test_core_and_kernels_import_without_triton_and_without_the_host():
    loaded = in_fresh_python(
        "import sys, attention_loom.kernels, attention_loom.core.weave, attention_loom.core.methods.ultravico, attention_loom.core.methods.riflex, attention_loom.core.methods.sparse, attention_loom.kernels.patterns.fit\n"
        "print([m for m in ('triton', 'comfy', 'comfy_api') if m in sys.modules])"
    )
    assert loaded == "[]"


def test_nothing_to_install():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dependencies"] == []
    assert not (ROOT / "requirements.txt").exists(), "the host would install it"
    name = project["project"]["name"]
    assert "comfyui" not in name.lower()
    assert len(project["project"]["version"].split(".")) == 3
    assert (ROOT / project["project"]["license"]["file"]).is_file()
    assert {"PublisherId", "DisplayName"} <= set(project["tool"]["comfy"])


def test_every_node_has_a_help_page():
    pages = {p.parent.name for p in (ROOT / "web" / "docs").glob("*/en.md")}
    sources = "".join(p.read_text() for p in (ROOT / "nodes").glob("*.py"))
    ids = {line.split('"')[1] for line in sources.splitlines() if "node_id=" in line}
    assert ids == pages

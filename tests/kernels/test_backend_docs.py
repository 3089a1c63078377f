"""docs/backend.md says what the code does: the table of backends, the limits, the example."""

import re
import runpy
from pathlib import Path

import torch
from attention_loom.bench import checks
from attention_loom.kernels import backends as registry
from attention_loom.kernels import quant

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "backend.md").read_text(encoding="utf8")


def test_every_backend_is_listed_in_its_order():
    listed = re.findall(r"^\| (\d+) \| `(\w+)` \|", TEXT, re.MULTILINE)
    assert listed == [(str(b.priority), b.name) for b in registry.backends()]


def test_limits_are_those_of_the_code():
    triton = next(b for b in registry.backends() if b.name == "triton").limits
    assert f"head width {triton.widths[0]} to {triton.widths[1]}" in TEXT
    assert f"at most {registry.MASK_BYTES // 2**20} MB" in TEXT
    assert f"above {quant.MOST_LOGIT:.0f} are computed from the 16-bit values" in TEXT
    assert "head widths other than {} and {}".format(*quant.WIDTHS) in TEXT


def test_accuracy_table_is_what_a_gpu_session_checks():
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16"), (torch.float32, "fp32")):
        row = re.search(rf"^\| {name} \| (.+) \|$", TEXT, re.MULTILINE).group(1)
        limits = checks.ALLOWED[dtype]
        assert [float(x) for x in row.split(" | ")] == [limits.output, limits.worst, limits.lse, limits.gradient]


def test_the_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1)
    q, k, v = (torch.randn(1, 1, 1176, 32) for _ in range(3))
    (tmp_path / "example.py").write_text(code)
    found = runpy.run_path(str(tmp_path / "example.py"), {"q": q, "k": k, "v": v})
    assert found["out"].shape == q.shape
    assert found["t"].backend
    assert 0 < float(found["plan"].blocks.density()) < 0.5


def test_files_named_exist():
    root = Path(__file__).resolve().parents[2]
    for cell in re.findall(r"^\| (`.+?) \|", TEXT.split("## Finding things")[1], re.MULTILINE):
        folder = ""
        for name in re.findall(r"`([^`]+)`", cell):
            folder = str(Path(name).parent) if "/" in name.rstrip("/") else folder
            assert (root / name).exists() or (root / folder / name).exists(), name
    assert (root / "docs" / "images" / "backend.png").exists()

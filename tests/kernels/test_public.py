"""The public surface, what importing it costs, and that the shipped kernels compile for real GPUs."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import attention_loom.kernels as kernels
import pytest

FOLDER = Path(kernels.__file__).parent
TOOLS = FOLDER.parent / "tools"


def test_public_names_are_frozen():
    assert sorted(kernels.__all__) == [
        "Aside",
        "AttentionPlan",
        "BackendUnavailable",
        "Band",
        "Bits",
        "BlockList",
        "BlockPlan",
        "DistanceTable",
        "ExtraKV",
        "FrameTable",
        "Frames",
        "HeadMix",
        "Labels",
        "MASKED",
        "Modulation",
        "Probe",
        "Rotation",
        "RowAffine",
        "RowEdit",
        "TokenOrder",
        "Trace",
        "Window",
        "attend",
        "best_tile",
        "block_list",
        "block_mass",
        "by_frame",
        "by_tile",
        "from_bool",
        "merge",
        "probs",
        "raster",
        "reference_attend",
    ]
    assert all(hasattr(kernels, name) for name in kernels.__all__)


def test_importing_and_attending_without_a_gpu_does_not_import_triton():
    code = (
        "import sys, torch, attention_loom.kernels as k\n"
        "q = torch.ones(1, 1, 4, 16)\n"
        "k.attend(q, q, q, k.AttentionPlan(key_bias=torch.zeros(1, 1, 4)), trace=(t := k.Trace()))\n"
        "assert t.backend == 'sdpa', t\n"
        "bad = [m for m in sys.modules if m == 'triton' or m.startswith(('triton.', 'comfy'))]\n"
        "assert not bad, bad"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr


def test_only_device_code_imports_triton_and_nothing_imports_the_host():
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "attention_loom"}, path
            if "triton" in roots:
                assert path.parent.name == "triton" and path.name not in ("launch.py", "op.py", "settings.py"), path


def test_no_file_outgrows_a_screenful_of_scrolling():
    for path in FOLDER.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.timeout(240)
def test_kernels_compile_for_real_gpus():
    """A short selection; ``python tools/aot.py --all`` does every configuration."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(TOOLS / "aot.py"), "--no-resources"], capture_output=True, text=True, env=env, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wgmma" in done.stdout
    assert "v_mfma" in done.stdout


def test_ahead_of_time_check_notices_a_broken_limit():
    code = (
        "import importlib.util as u\n"
        f"spec = u.spec_from_file_location('aot', {str(TOOLS / 'aot.py')!r}); aot = u.module_from_spec(spec); spec.loader.exec_module(aot)\n"
        "aot.import_pack()\n"
        "class Fake:\n"
        "    class metadata: shared = 300_000\n"
        "    asm = {'ptx': 'fma.rn.f32'}\n"
        "found = aot.problems('sm_90', 2, Fake)\n"
        "assert found == ['300000 bytes of shared memory, the limit is 232448', 'no wgmma'], found\n"
        "Fake.metadata.shared = 1000; Fake.asm = {'ptx': 'wgmma.mma_async'}\n"
        "assert aot.problems('sm_90', 2, Fake) == []"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

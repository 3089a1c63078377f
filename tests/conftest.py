"""Settings every test needs before anything is imported."""

import os
import sys
from pathlib import Path

if os.environ.get("LOOM_GPU") != "1":
    # read by triton when it is first imported; kernels then run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parent.parent
# our folder `nodes` would hide the host's `nodes.py` from everything that imports it
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != ROOT]

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def pytest_collection_modifyitems(items):
    if os.environ.get("LOOM_GPU") == "1":
        unwanted, reason = "interpreter", "runs kernels on the CPU, in Triton's interpreter"
    else:
        unwanted, reason = "gpu", "needs a CUDA device; run with LOOM_GPU=1 on one"
    for item in items:
        if unwanted in item.keywords:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_addoption(parser):
    parser.addoption("--screenshots", default=None, help="folder into which the browser tests put pictures of what they see")


MODELS = {"toy_wan_t2v.safetensors": "diffusion_models", "toy_umt5.safetensors": "text_encoders", "toy_wan_vae.safetensors": "vae"}


@pytest.fixture(scope="session")
def foreign_log(tmp_path_factory):
    """Where the rude foreign pack of ``server`` counts."""
    return tmp_path_factory.mktemp("foreign") / "calls.log"


@pytest.fixture(scope="session")
def server(tmp_path_factory, foreign_log):
    """One real ComfyUI for all tests that want one (starting it takes longer than most of them), with the toy world's models and a rude foreign pack beside ours."""
    from attention_loom.tools.headless import Headless

    packs = {"toy-world": ROOT / "toyworld" / "comfy_node", "foreign-pack": ROOT / "tests" / "fixtures" / "foreign_pack"}
    with Headless(tmp_path_factory.mktemp("comfy"), packs=packs, env={"FOREIGN_LOG": str(foreign_log), "TRITON_INTERPRET": "0"}) as host:
        for name, kind in MODELS.items():
            host.put_model(kind, ROOT / "toyworld" / "checkpoints" / name)
        yield host

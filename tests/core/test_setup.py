"""Set-up for another host: what of its requirements goes beside the locked ones."""

import importlib.util

from host_inprocess import ROOT

_spec = importlib.util.spec_from_file_location("loom_setup", ROOT / "tools" / "setup.py")
setup = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(setup)


def test_a_checkouts_requirements_leave_torch_and_numpy_as_locked(tmp_path):
    (tmp_path / "requirements.txt").write_text(
        "comfyui-frontend-package==1.49.6\ncomfyui-workflow-templates==0.11\ntorch\ntorchvision\nnumpy>=1.25.0\n\n#non essential:\nav>=16.0.0  # video\n"
    )
    assert setup._wanted_by(tmp_path) == ["comfyui-frontend-package==1.49.6", "av>=16.0.0"]


def test_another_host_is_another_environment():
    keys = {setup._digest(setup.LOCK, "3.11", *wanted) for wanted in ([], ["av>=16"], ["av>=17"])}
    assert len(keys) == 3

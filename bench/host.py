"""The host's model classes without an installed host: from a ComfyUI tree that was carried along, with nothing downloaded.

Wanted of the tree are ``comfy/`` and ``node_helpers.py`` (about 23 MB); ``COMFYUI_DIR`` names it, otherwise it is where ``make setup``
puts it. Packages the host imports at load and a benchmark of attention never uses (:data:`UNUSED`) are stood in for where
they are missing: by modules that raise as soon as anything of them is touched, so that nothing is silently something else.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from .provenance import ROOT

UNUSED = ("torchsde", "torchaudio", "torchvision", "av", "kornia", "spandrel", "sentencepiece", "tokenizers", "transformers")
"""Noise of stochastic samplers, sound, pictures of Cosmos, video files, filters, upscalers and prompts: these models need none."""
NEEDED = ("einops", "safetensors", "numpy", "scipy", "psutil", "tqdm", "PIL")
"""Beside torch. Without one of these there is no host to measure."""


class HostMissing(Exception):
    """The host cannot be imported here; the message says what is missing."""


class _Absent(ModuleType):
    """A package that is not installed. Anything but a look at the module itself says so."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(f"{self.__name__}.{name}")


class _Nothing(type):
    """A name of an absent package: may be imported and inherited from, never used."""

    def __new__(cls, name: str, bases: tuple[Any, ...] = (), body: dict[str, Any] | None = None) -> Any:
        return super().__new__(cls, name, tuple(b for b in bases if not isinstance(b, _Nothing)), body or {})

    def __init__(cls, name: str, bases: tuple[Any, ...] = (), body: dict[str, Any] | None = None) -> None:
        super().__init__(name, (), {})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise HostMissing(f"{cls.__name__} was called, and its package is not installed on this machine")


class _Finder:
    """Answers for :data:`UNUSED` packages that are not there, and their submodules."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] not in _absent():
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


@cache
def _absent() -> frozenset[str]:
    return frozenset(name for name in UNUSED if importlib.util.find_spec(name) is None)


def host_dir() -> Path:
    """Root of the ComfyUI tree."""
    return Path(os.environ.get("COMFYUI_DIR") or ROOT / "build" / "host" / "ComfyUI").resolve()


@cache
def import_host(device: str) -> tuple[str, ...]:
    """Make ``import comfy`` work; returns the packages that are stood in for. Raises :class:`HostMissing`."""
    path = host_dir()
    if not (path / "comfy" / "supported_models.py").is_file():
        raise HostMissing("no ComfyUI tree: carry build/host/ComfyUI/comfy and node_helpers.py, or name a tree in COMFYUI_DIR")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise HostMissing(f"ComfyUI needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed")
    absent = tuple(sorted(_absent()))
    if absent:
        sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
    sys.path.insert(0, str(path))
    # Weights are made on the device and stay there: nothing is to be moved to and fro while a step is timed.
    arguments, sys.argv = sys.argv, ["x", "--cpu"] if device == "cpu" else ["x", "--highvram"]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.model_patcher
        import comfy.sample
        import comfy.supported_models
    except ImportError as error:
        raise HostMissing(f"ComfyUI cannot be imported: {error}") from error
    finally:
        sys.argv = arguments
    return absent


_LATER: dict[str, tuple[str, str, dict[str, Any]]] = {
    "hunyuan_video": ("comfy.ldm.hunyuan_video.model", "HunyuanVideoParams", {"meanflow_sum": False}),
    "flux": ("comfy.ldm.flux.model", "FluxParams", {"txt_ids_dims": []}),
    "flux2": ("comfy.ldm.flux.model", "FluxParams", {"txt_ids_dims": [3]}),
    "chroma": ("comfy.ldm.chroma.model", "ChromaParams", {"txt_ids_dims": [], "vec_in_dim": None}),
    "chroma_radiance": (
        "comfy.ldm.chroma_radiance.model",
        "ChromaRadianceParams",
        {"txt_ids_dims": [], "vec_in_dim": None, "use_x0": False, "use_sequential_txt_ids": False},
    ),
}
"""Settings that later hosts want and ComfyUI 0.3.75 does not know, as their model detection sets them: image_model -> class that takes them."""


def of_this_host(unet: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration, written for ComfyUI 0.3.75, with what the imported host wants more."""
    if unet.get("image_model") not in _LATER:
        return unet
    module, name, settings = _LATER[unet["image_model"]]
    known = {f.name for f in fields(getattr(importlib.import_module(module), name))}
    return unet | {k: v for k, v in settings.items() if k in known}

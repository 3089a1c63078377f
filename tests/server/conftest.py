"""A small text-to-video graph for the one real ComfyUI of all tests.

(The folder is not called ``nodes``: pytest would register it under that name, which is the host's ``nodes.py``.)
"""

import copy
import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
from attention_loom.tools.headless import ROOT

sys.path.append(str(Path(__file__).parent.parent / "core"))  # tiny models are shared


@pytest.fixture(scope="session")
def host(server):
    return server


class Graph:
    """A small text-to-video graph on the toy model: chain model nodes, run, get the latent back."""

    known = {}

    def __init__(self, frames, seed=1, steps=3, cfg=3.0, prompt="a red circle orbiting clockwise"):
        self.nodes = {
            "unet": {"class_type": "UNETLoader", "inputs": {"unet_name": "toy_wan_t2v.safetensors", "weight_dtype": "default"}},
            "clip": {"class_type": "ToyWorldTextEncoder", "inputs": {"clip_name": "toy_umt5.safetensors"}},
            "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": prompt}},
            "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": ""}},
            "latent": {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 64, "height": 64, "length": frames, "batch_size": 1}},
        }
        self.model = ["unet", 0]
        self.sampling = {"seed": seed, "steps": steps, "cfg": cfg, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}

    def add(self, kind, **inputs):
        key = f"n{len(self.nodes)}"
        self.nodes[key] = {"class_type": kind, "inputs": {"model": self.model, **inputs}}
        self.model = [key, 0]
        return self

    def in_windows(self, length):
        """The host's own context windows of so many pixel frames, 8 of them shared."""
        fixed = {"context_schedule": "standard_static", "context_stride": 1, "closed_loop": False, "fuse_method": "pyramid"}
        later = dict.fromkeys(("freenoise", "retain_first_frame", "split_conds_to_windows"), False)  # of later hosts; 0.3.75 looks past them
        return self.add("WanContextWindowsManual", context_length=length, context_overlap=8, **fixed, **later)

    def prompt(self, report=False):
        nodes = copy.deepcopy(self.nodes)
        nodes["sampler"] = {
            "class_type": "KSampler",
            "inputs": {"model": self.model, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0], **self.sampling},
        }
        nodes["save"] = {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "t"}}
        if report:
            nodes["report"] = {"class_type": "LoomReport", "inputs": {"model": self.model, "after": ["sampler", 0]}}
        return nodes

    def run(self, host, report=False):
        """The sampled latent [1, 16, T, h, w]; with report also its text."""
        result = host.run(self.prompt(report))
        latent = safetensors.torch.load_file(host.file(result.outputs["save"]["latents"][0]))["latent_tensor"]
        return (latent, result.outputs["report"]["text"][0]) if report else latent

    def known_run(self, host):
        """As :meth:`run`, once for all tests: for graphs that are only compared with."""
        key = json.dumps(self.prompt(), sort_keys=True)
        if key not in self.known:
            self.known[key] = self.run(host)
        return self.known[key]


@pytest.fixture(scope="session")
def graph():
    return Graph


@pytest.fixture(scope="session")
def object_info(host):
    return host.get("/object_info")


@pytest.fixture
def workflow():
    return lambda name: json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())

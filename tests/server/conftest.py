"""One real ComfyUI for all server tests, with the toy world's models and a rude foreign pack beside ours.

(The folder is not called ``nodes``: pytest would register it under that name, which is the host's ``nodes.py``.)
"""

import copy
import json

import pytest
import safetensors.torch
from attention_loom.tools.headless import ROOT, Headless

MODELS = {"toy_wan_t2v.safetensors": "diffusion_models", "toy_umt5.safetensors": "text_encoders", "toy_wan_vae.safetensors": "vae"}


@pytest.fixture(scope="session")
def foreign_log(tmp_path_factory):
    return tmp_path_factory.mktemp("foreign") / "calls.log"


@pytest.fixture(scope="session")
def host(tmp_path_factory, foreign_log):
    packs = {"toy-world": ROOT / "toyworld" / "comfy_node", "foreign-pack": ROOT / "tests" / "fixtures" / "foreign_pack"}
    with Headless(tmp_path_factory.mktemp("comfy"), packs=packs, env={"FOREIGN_LOG": str(foreign_log), "TRITON_INTERPRET": "0"}) as server:
        for name, kind in MODELS.items():
            server.put_model(kind, ROOT / "toyworld" / "checkpoints" / name)
        yield server


class Graph:
    """A small text-to-video graph on the toy model: chain model nodes, run, get the latent back."""

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


@pytest.fixture(scope="session")
def graph():
    return Graph


@pytest.fixture(scope="session")
def object_info(host):
    return host.get("/object_info")


@pytest.fixture
def workflow():
    return lambda name: json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())

"""Wan Animate in a real ComfyUI: a tiny model of random weights read by the host's loader, its own conditioning node, methods on it."""

import pytest
import safetensors.torch
import torch

pytestmark = pytest.mark.server

NAME = "tiny_wan_animate.safetensors"


@pytest.fixture
def animated(host, graph):
    """A graph on the tiny model: pose and face drive it, reference picture in front."""
    import host_inprocess

    host_inprocess.import_host()
    import tiny_models

    folder = host.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / NAME).is_file():
        with torch.inference_mode():
            state = tiny_models.tiny("wan_animate").patcher.model.diffusion_model.state_dict()
            safetensors.torch.save_file({name: weight.contiguous() for name, weight in state.items()}, folder / NAME)

    def make():
        made = graph(9, steps=2)
        made.nodes["unet"]["inputs"]["unet_name"] = NAME
        made.nodes["words"], made.nodes["no words"] = made.nodes.pop("positive"), made.nodes.pop("negative")
        made.nodes["vae"] = {"class_type": "VAELoader", "inputs": {"vae_name": "toy_wan_vae.safetensors"}}
        made.nodes["pose"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 9, "color": 0x804020}}
        made.nodes["face"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0x208040}}
        made.nodes["animate"] = {
            "class_type": "WanAnimateToVideo",
            "inputs": {
                "positive": ["words", 0], "negative": ["no words", 0], "vae": ["vae", 0], "width": 64, "height": 64, "length": 9, "batch_size": 1,
                "continue_motion_max_frames": 5, "video_frame_offset": 0, "pose_video": ["pose", 0], "face_video": ["face", 0],
            },
        }  # fmt: skip
        prompt = made.prompt

        def driven(report=False):
            nodes = prompt(report)
            nodes["sampler"]["inputs"] |= {"positive": ["animate", 0], "negative": ["animate", 1], "latent_image": ["animate", 2]}
            return nodes

        made.prompt = driven
        return made

    return make


def test_methods_act_on_a_model_that_a_pose_and_a_face_drive(host, animated):
    stock = animated().run(host)
    assert stock.shape == (1, 16, 4, 8, 8), "the reference in front of three latent frames"
    longer, report = animated().add("LoomUltraViCo", preset="custom", alpha=0.3, strength=1.0, train_frames=2).run(host, report=True)
    assert torch.isfinite(longer).all() and not torch.equal(longer, stock)
    assert "Wan" in report and "Longer Video (UltraViCo)" in report and "not understood" not in report
    guided, report = animated().add("LoomSoftPAG", preset="auto", scale=3.0, u=0.5, heads="-1").run(host, report=True)
    assert torch.isfinite(guided).all() and not torch.equal(guided, stock)
    assert "2 extra evaluations of the model" in report
    assert torch.equal(animated().run(host), stock), "the graph without a node is as before"

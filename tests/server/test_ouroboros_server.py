"""An endless clip in a real ComfyUI on the toy world's video model: to a video file, stopped, and gone on with."""

import pytest
import safetensors.torch
import torch
from attention_loom.tools.headless import HostError

pytestmark = pytest.mark.server

WINDOW, PARTITIONS = 3, 2


def endless(graph, frames, clip=False, **settings):
    """A graph of SamplerCustomAdvanced: 64 x 64 pixels, two prompts, latent and video saved."""
    nodes = dict(graph(9).nodes)
    nodes |= {
        "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "toy_wan_vae.safetensors"}},
        "scenes": {"class_type": "LoomEndlessPrompts", "inputs": {"clip": ["clip", 0], "text": "0: a red circle moving right\n6: a blue square moving left"}},
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "guider": {"class_type": "CFGGuider", "inputs": {"model": ["unet", 0], "positive": ["scenes", 0], "negative": ["negative", 0], "cfg": 3.0}},
        "endless": {"class_type": "LoomOuroboros", "inputs": {"frames": frames, "window": WINDOW, "partitions": PARTITIONS, "tail": "coherent"} | settings},
        "sigmas": {"class_type": "BasicScheduler", "inputs": {"model": ["unet", 0], "scheduler": "simple", "steps": ["endless", 1], "denoise": 1.0}},
        "sampler": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["endless", 0], "sigmas": ["sigmas", 0], "latent_image": ["latent", 0]},
        },
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "endless"}},
    }
    if clip:
        nodes["decode"] = {"class_type": "LoomDecodeEndless", "inputs": {"samples": ["sampler", 0], "vae": ["vae", 0], "method": "auto"}}
        nodes["video"] = {"class_type": "CreateVideo", "inputs": {"images": ["decode", 0], "fps": 8.0}}
        nodes["file"] = {"class_type": "SaveVideo", "inputs": {"video": ["video", 0], "filename_prefix": "endless", "format": "auto", "codec": "auto"}}
    return nodes


def latent_of(host, result):
    return safetensors.torch.load_file(host.file(result.outputs["save"]["latents"][0]))["latent_tensor"]


def test_from_prompts_to_a_video_file(host, graph):
    seen = []
    result = host.run(endless(graph, 12, clip=True), progress=lambda node, value, most: seen.append((value, most)) if node == "sampler" else None)
    assert latent_of(host, result).shape == (1, 16, 12, 8, 8)
    (entry,) = result.outputs["file"]["images"]
    import av

    with av.open(str(host.file(entry))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 45
    total = 6 + 3 + 12  # start clip, warm-up, frames
    assert {most for _, most in seen} == {total} and max(value for value, _ in seen) == total


def test_stopped_kept_and_gone_on_with(host, graph):
    whole = latent_of(host, host.run(endless(graph, 10)))
    stopped = []

    def watch(node, value, most):
        if node == "sampler" and value >= 6 + 3 + 3 and not stopped:
            stopped.append(value)
            host.interrupt()

    part = latent_of(host, host.run(endless(graph, 400, save_queue="server test"), progress=watch))
    made = part.shape[2]
    assert 3 <= made < 400
    assert torch.equal(part[:, :, : min(made, 10)], whole[:, :, : min(made, 10)])
    rest = latent_of(host, host.run(endless(graph, 4, resume_from="server test", save_queue="server test")))
    again = latent_of(host, host.run(endless(graph, made + 4)))
    assert torch.equal(torch.cat([part, rest], 2), again)


def test_a_run_that_must_not_be_kept_is_cancelled(host, graph):
    stopped = []

    def watch(node, value, most):
        if node == "sampler" and value >= 6 + 3 + 2 and not stopped:
            stopped.append(value)
            host.interrupt()

    with pytest.raises(HostError, match="interrupted"):
        host.run(endless(graph, 400, on_stop="cancel"), progress=watch)


def kept(graph, **settings):
    """With the subject kept: the node's own prompt and model."""
    nodes = endless(graph, 2)
    defaults = {"prompt": "0: a red circle moving right\n6: a red circle standing still", "subject": "red circle", "strength": 1.0, "guidance": 1.0, "guidance_step": "normalised"}
    nodes["subject"] = {"class_type": "LoomEndlessSubject", "inputs": {"model": ["unet", 0], "clip": ["clip", 0]} | defaults | settings}
    nodes["guider"]["inputs"] |= {"model": ["subject", 0], "positive": ["subject", 1]}
    nodes["report"] = {"class_type": "LoomReport", "inputs": {"model": ["subject", 0], "after": ["sampler", 0]}}
    return nodes


def test_the_subject_is_kept_and_the_report_says_so(host, graph):
    """Attention and gradients inside the server's inference mode."""
    result = host.run(kept(graph))
    assert latent_of(host, result).isfinite().all()
    report = result.outputs["report"]["text"][0]
    assert "Keep Subject in Endless Video" in report and "changed nothing" not in report
    assert "tokens 1, 2" in result.outputs["subject"]["text"][0]


def test_a_subject_must_stand_in_every_prompt(host, graph):
    with pytest.raises(HostError, match="'circle' does not stand in the prompt"):
        host.run(kept(graph, prompt="0: a red circle moving right\n6: a blue square moving left", subject="circle"))


@pytest.mark.parametrize(
    ("settings", "words"), [({"window": 4}, "has 3 latent frames and the window 4"), ({"resume_from": "../x"}, "is not a name"), ({"resume_from": "none"}, "no queue file none")]
)
def test_what_does_not_fit_is_said_in_one_sentence(host, graph, settings, words):
    with pytest.raises(HostError, match=words):
        host.run(endless(graph, 2, **settings))

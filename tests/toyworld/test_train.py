"""The trainer: schedule, noise levels, resuming, the two files it writes."""

import pytest
import torch
from attention_loom.toyworld import host, text_encoder, train, train_vae, vocabulary
from attention_loom.toyworld.training import loop


def test_schedule():
    assert loop.rate(0, 1000) == pytest.approx(0.01) and loop.rate(500, 1000) == 1 and loop.rate(999, 1000) == 0.02
    # The constant phase is the same whatever the length of the run, so a run may be resumed with more steps.
    assert all(loop.rate(step, 5000) == loop.rate(step, 7000) for step in range(3400))
    assert train_vae.rate(0, 1000) == pytest.approx(0.01) and train_vae.rate(999, 1000) == 0.02


def test_noise_levels_are_stratified_and_shifted():
    sigma = loop.times(512, train.SHIFT, torch.Generator().manual_seed(0), shuffled=False)
    assert (sigma > 0).all() and (sigma < 1).all() and (sigma.sort().values == sigma).all()
    assert sigma.median() == pytest.approx(0.75, abs=0.02)  # 3 x 0.5 / (1 + 2 x 0.5)


def test_muon_direction_is_orthogonal():
    matrix = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(train_vae.orthogonal(matrix))
    assert singular.min() > 0.5 and singular.max() < 1.4


def trainer(seed):
    task = train.FirstWorld(seed, compiled=False)
    task.batch = 2
    return loop.Trainer(task, seed)


@pytest.mark.host
def test_resumed_training_equals_an_unbroken_run(tmp_path):
    pool = train.make_pool(8, 0)
    whole = trainer(3)
    losses = [whole.advance(pool, 10) for _ in range(2)]
    first = trainer(3)
    assert first.advance(pool, 10) == losses[0]
    torch.save(first.state(), tmp_path / "resume.pt")
    second = trainer(99)
    second.restore(torch.load(tmp_path / "resume.pt"))
    assert second.advance(pool, 10) == pytest.approx(losses[1], rel=1e-6) and second.step == 2
    names = [name for name, _ in second.task.named_parameters()]
    second.export(tmp_path, {"seed": 3})
    clip = text_encoder.load(tmp_path / "toy_umt5.safetensors")
    with torch.inference_mode():
        context = clip.encode_from_tokens(clip.tokenize("a red circle moving right"))[0]
    trained = vocabulary.normalised(second.average[names.index("words")])[vocabulary.rows_of("a red circle moving right")]
    assert (context - trained).abs().max() < 5e-3

    import comfy.sd

    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(tmp_path / "toy_wan_t2v.safetensors"))
    assert model.model.model_config.unet_config["dim"] == train.MODEL["dim"]


@pytest.mark.host
def test_vae_pool_matches_its_latents():
    latents, pixels = train_vae.make_pool(4, 0)
    assert latents.shape == (4, 16, 4, 6, 6) and pixels.shape == (4, 3, 13, 48, 48) and pixels.abs().max() <= 1
    assert float(train_vae.loss(pixels.float(), pixels.float())) == 0


def test_host_folder_is_named_when_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(ValueError, match="set COMFYUI_DIR"):
        host.comfyui_dir()

"""A small world for AttenCraft's trainings: a model with words, a picture of two concepts, painted masks, and folders of its own.

    @pytest.fixture
    def world(tmp_path, monkeypatch):
        yield from opened(tmp_path, monkeypatch)

``ran(world.training(steps=1, adapter="lora"))`` is a finished training; settings are those of the node.
"""

import host_inprocess
import tiny_text
import torch
from tiny_models import SEED

CONCEPTS = "mine = cat\nyours = dog"
MASKED, SCALE = (8, 12), 0.18215
"""Cells of masks and of the latent; what the host multiplies a latent of SD 1.5 with."""


def opened(folder, monkeypatch):
    """The world, within inference mode as on the server; its outputs and embeddings lie in ``folder``."""
    host_inprocess.import_host()
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder / "output"))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(folder / "embeddings")], {".safetensors"}))
    with torch.inference_mode():
        model, clip = tiny_text.with_words(folder / "embeddings")
        yield World(model, clip, folder)


class World:
    def __init__(self, model, clip, folder):
        self.model, self.clip, self.folder = model, clip, folder
        g = torch.Generator().manual_seed(1)
        self.latent = {"samples": torch.randn(tiny_text.LATENT, generator=g)}
        self.prior = {"samples": torch.randn(3, *tiny_text.LATENT[1:], generator=g)}
        self.painted = torch.zeros(2, 8, 12)
        self.painted[0, :5, :5], self.painted[1, 4:, 6:] = 1, 1

    def text(self, words="a forest"):
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(words))

    def training(self, **settings):
        from attention_loom.nodes.attencraft import learning

        defaults = dict(masks=self.painted, prior_latents=self.prior, prior_positive=self.text(), steps=3, learning_rate=1e-2, refresh_every=0, preview_every=0, resume=False)
        given = dict(model=self.model, clip=self.clip, latent=self.latent, concepts=CONCEPTS, name="two") | defaults | settings
        return learning(**given)

    def predict(self, model=None, words="a forest", cfg=1.0):
        import comfy.sample

        text = self.text(words) if isinstance(words, str) else words
        noise = comfy.sample.prepare_noise(self.latent["samples"], SEED)
        return comfy.sample.sample(
            model or self.model, noise, 1, cfg, "euler", "normal", text, self.text(""), torch.zeros_like(noise), disable_pbar=True, seed=SEED
        )  # fmt: skip


def ran(training):
    training.run()
    return training


def functions(world):
    return [f for m in world.model.model.diffusion_model.modules() for f in getattr(m, "weight_function", ())]

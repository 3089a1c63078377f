"""Which model and inputs remembered scores belong to: what changes a picture changes the key, and nothing else does."""

from dataclasses import replace

import pytest
import torch
from attention_loom.core.attach import attach
from attention_loom.core.heads import HeadSet
from attention_loom.core.hunt.identity import model_key
from attention_loom.core.hunt.scorers import Measured
from attention_loom.core.methods.softpag import SoftPAG
from test_headhunter import Eye, make
from tiny_models import tiny

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


def test_the_key_knows_what_matters():
    model = tiny("flux")
    key = make(model).key()
    assert key == make(tiny("flux")).key()
    other = make(model)
    changes = [
        replace(other, scorer=Measured("contrast")),
        replace(other, sampling=replace(other.sampling, steps=3)),
        replace(other, push=replace(other.push, u=0.5)),
        replace(other, pairs=other.pairs[:1]),
        replace(other, pairs=tuple(replace(p, positive=[[p.positive[0][0] + 1, p.positive[0][1]]]) for p in other.pairs)),
        replace(other, latent={"samples": torch.ones_like(model.latent)}),
        replace(other, model=tiny("flux2").patcher),
        replace(other, model=attach(model.patcher, SoftPAG(HeadSet.parse("0")))),
    ]
    keys = [c.key() for c in changes]
    assert len({key, *keys}) == len(keys) + 1
    clone = model.patcher.clone()
    name = next(n for n in clone.model.state_dict() if n.endswith("img_attn.qkv.weight"))
    clone.add_patches({name: (torch.zeros_like(clone.model.state_dict()[name]),)}, 0.5)
    assert model_key(clone) != model_key(model.patcher), "a LoRA makes another model"


def test_the_key_knows_what_other_nodes_put_on_the_model():
    """Two LoRAs of one strength, two shifts, two settings of a foreign guidance; and the same twice is the same."""
    from comfy_extras.nodes_model_advanced import ModelSamplingFlux

    model = tiny("flux")
    name = next(n for n in model.patcher.model.state_dict() if n.endswith("img_attn.qkv.weight"))

    def lora(seed):
        clone = model.patcher.clone()
        weight = clone.model.state_dict()[name]
        clone.add_patches({name: (torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)),)}, 1.0)
        return clone

    def shifted(by):
        return ModelSamplingFlux().patch(model.patcher, by, by, 64, 64)[0]

    def guided(scale):
        clone = model.patcher.clone()
        clone.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * scale)
        return clone

    made = [lambda: lora(1), lambda: lora(2), lambda: shifted(0.5), lambda: shifted(4.0), lambda: guided(1.0), lambda: guided(0.5), lambda: model.patcher]
    keys = [model_key(each()) for each in made]
    assert len(set(keys)) == len(keys)
    assert [model_key(each()) for each in made] == keys, "the same again has the same key"


def test_the_key_knows_the_vae():
    class Other(Eye):
        def __init__(self, gain):
            self.first_stage_model = torch.nn.Linear(1, 1, bias=False)
            self.first_stage_model.weight.data.fill_(gain)

    model = tiny("flux")
    found = make(model)
    assert len({replace(found, vae=Other(gain)).key() for gain in (1.0, 2.0, 1.0)}) == 2

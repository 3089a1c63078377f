"""The second world's models through the host's loaders and samplers: freshly initialised ones here, so that no checkpoint is needed."""

import random
import shutil

import pytest
import torch
from attention_loom.toyworld import bundles, forcing, host, sampling
from attention_loom.toyworld.bundles import BUNDLES
from attention_loom.toyworld.scenes import Caption, random_scene, render

pytestmark = pytest.mark.host
CLIP = "a red circle moving right on a grey background"
PICTURE = "a red circle on the left on a grey background"
CLASSES = {"wan_t2v": "WAN21", "wan_forcing": "WAN21", "sd3": "SD3", "sd15": "BaseModel"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of untrained models with random output layers (a trainer starts them at zero, which would draw the noise itself)."""
    from attention_loom.toyworld.training import sd3, sd15, wan

    folder = tmp_path_factory.mktemp("untrained")
    for kind in (wan.Wan, sd3.SD3, sd15.SD15):
        task = kind(0, False)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in task.model.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
        task.export(folder, {"seed": 0})
    for end in ("", "_text"):  # the same kind of files
        shutil.copy(folder / f"scenes_wan_t2v{end}.safetensors", folder / f"scenes_wan_forcing{end}.safetensors")
    yield folder
    bundles.release()


def caption_of(name):
    return CLIP if BUNDLES[name].moving else PICTURE


def quick(name, **values):
    return bundles.changed(BUNDLES[name].settings, steps=2, **values)


@pytest.mark.parametrize("name", BUNDLES)
def test_every_bundle_loads_and_draws(folder, name):
    bundle = BUNDLES[name]
    model, _ = bundles.load(bundle, folder)
    assert type(model.model).__name__ == CLASSES[name]
    assert getattr(model.get_model_object("model_sampling"), "shift", None) == bundle.settings.shift
    frames = sampling.sample(bundle, [caption_of(name)] * 2, [3, 4], decoder="linear", folder=folder, settings=quick(name))
    assert frames.shape == (2, 33 if bundle.moving else 1, bundle.size, bundle.size, 3)
    assert 0 <= frames.min() <= frames.max() <= 1 and not torch.equal(frames[0], frames[1])


@pytest.mark.parametrize("name", ["wan_t2v", "sd3", "sd15"])
def test_a_caption_and_a_seed_are_one_sample_whatever_the_batch(folder, name):
    bundle, settings, caption = BUNDLES[name], quick(name), caption_of(name)
    other = caption.replace("red circle", "blue square")
    together = sampling.draw(bundle, [other, caption, caption], [5, 6, 5], folder=folder, settings=settings)
    alone = sampling.draw(bundle, [caption], [6], folder=folder, settings=settings)
    assert torch.allclose(together[1], alone[0], atol=1e-4)
    assert not torch.allclose(together[0], together[2], atol=1e-4)  # one noise, two captions


def test_a_patch_gets_the_model_and_its_result_is_sampled(folder):
    bundle, seen = BUNDLES["sd3"], []

    def halved(model):
        seen.append(type(model).__name__)
        model = model.clone()
        model.set_model_unet_function_wrapper(lambda apply, call: 0.5 * apply(call["input"], call["timestep"], **call["c"]))
        return model

    stock = sampling.draw(bundle, [PICTURE], [1], folder=folder, settings=quick("sd3"))
    changed = sampling.draw(bundle, [PICTURE], [1], patch=halved, folder=folder, settings=quick("sd3"))
    again = sampling.draw(bundle, [PICTURE], [1], folder=folder, settings=quick("sd3"))
    assert seen == ["ModelPatcher"] and not torch.allclose(stock, changed, atol=1e-3)
    assert torch.equal(stock, again)


def test_noise_is_the_host_noise(folder):
    host.load_host()
    import comfy.sample

    assert torch.equal(sampling.noise_of(5, None, 128), comfy.sample.prepare_noise(torch.zeros(1, 16, 16, 16), 5))
    assert torch.equal(sampling.noise_of(5, 9, 64), comfy.sample.prepare_noise(torch.zeros(1, 16, 9, 8, 8), 5))


def test_length_size_and_shift_can_be_asked_for(folder):
    wan, sd3 = BUNDLES["wan_t2v"], BUNDLES["sd3"]
    assert sampling.draw(wan, [CLIP], [1], folder=folder, latent_frames=2, size=48, settings=quick("wan_t2v")).shape == (1, 16, 2, 6, 6)
    own = sampling.draw(sd3, [PICTURE], [1], folder=folder, settings=quick("sd3"))
    assert not torch.allclose(own, sampling.draw(sd3, [PICTURE], [1], folder=folder, settings=quick("sd3", shift=1.0)), atol=1e-3)
    assert sampling.draw(sd3, [PICTURE], [1], folder=folder, size=256, settings=quick("sd3")).shape == (1, 16, 32, 32)


@pytest.mark.parametrize("name", ["wan_t2v", "sd3"])
def test_the_linear_round_trip_knows_colours(name):
    host.load_host()
    scene = random_scene(random.Random(0), Caption.parse(caption_of(name)))
    frames = render(scene, size=BUNDLES[name].size)
    tripped = sampling.round_trip(BUNDLES[name], frames, "linear")
    assert tripped.shape == frames.shape and (tripped - frames).square().mean() < 0.01


def test_a_pyramid_without_delay_is_the_hosts_euler(folder):
    bundle = BUNDLES["wan_forcing"]
    own = forcing.pyramid(bundle, [CLIP], [2], 0, folder, latent_frames=3)
    hosts = sampling.draw(bundle, [CLIP], [2], folder=folder, latent_frames=3)
    assert torch.allclose(own, hosts, atol=2e-3)
    assert not torch.allclose(forcing.pyramid(bundle, [CLIP], [2], 1, folder, latent_frames=3), hosts, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "captions", "how", "says"),
    [
        ("sd3", ["a red dog on a grey background"], {}, "not a caption of the second toy world"),
        ("sd3", [CLIP], {}, "it draws pictures, so no object may have a motion"),
        ("wan_t2v", [PICTURE], {}, "it draws clips, so every object needs a motion"),
        ("sd3", [PICTURE, PICTURE], {}, "as many seeds"),
        ("sd3", [PICTURE], {"latent_frames": 3}, "takes no number of latent frames"),
        ("wan_t2v", [CLIP], {"latent_frames": 0}, "at least one latent frame"),
        ("sd3", [PICTURE], {"size": 100}, "multiple of 8"),
        ("sd3", [PICTURE], {"size": 264}, "table of positions ends at 256"),
        ("sd3", [PICTURE], {"decoder": "magic"}, "'vae' or 'linear'"),
    ],
)
def test_bad_requests_get_one_sentence(folder, name, captions, how, says):
    with pytest.raises(ValueError, match=says) as error:
        sampling.sample(BUNDLES[name], captions, [0], folder=folder, **how)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["absent", "truncated", "unmarked", "other model", "text encoder"])
def test_missing_and_foreign_checkpoints_get_one_sentence(folder, tmp_path, kind):
    from safetensors.torch import save_file

    bundle = BUNDLES["wan_t2v"]
    shutil.copy(folder / bundle.text, tmp_path)
    path = tmp_path / bundle.model
    if kind == "truncated":
        path.write_bytes((folder / bundle.model).read_bytes()[:5000])
    elif kind == "unmarked":
        save_file({"weight": torch.zeros(2)}, path)
    elif kind == "other model":
        shutil.copy(folder / "scenes_sd3.safetensors", path)
    elif kind == "text encoder":
        shutil.copy(folder / bundle.text, path)
    with pytest.raises(ValueError, match="scenes_wan_t2v.safetensors") as error:
        bundles.load(bundle, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", BUNDLES)
def test_committed_checkpoints_draw(name):
    bundle = BUNDLES[name]
    if missing := [file for file in (bundle.model, bundle.text, bundle.vae) if not (host.CHECKPOINTS / file).is_file()]:
        pytest.skip(f"{', '.join(missing)} is not committed yet")
    frames = sampling.sample(bundle, [caption_of(name)], [1], settings=bundles.changed(bundle.settings, steps=8))[0]
    red = frames[..., 0] - frames[..., 1:].amax(-1) > 0.3
    assert frames.shape[0] == (33 if bundle.moving else 1) and 0.005 < red.float().mean() < 0.25

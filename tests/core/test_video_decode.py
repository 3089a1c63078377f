"""Decoding in parts on the host's own video VAEs: the same pictures as one whole decode."""

import host_inprocess
import pytest
import torch
from attention_loom.core.errors import LoomError
from attention_loom.core.video_decode import can_stream, decode, frame_decoder, kept, parts, starts_of

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def vae():
    host_inprocess.import_host()
    import comfy.sd
    import comfy.utils

    with torch.inference_mode():
        return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(host_inprocess.ROOT / "toyworld" / "checkpoints" / "toy_wan_vae.safetensors")))


def noise(frames):
    return torch.randn(1, 16, frames, 3, 4, generator=torch.Generator().manual_seed(0))


def steady(frames):
    """A latent that moves as slowly as a clip does."""
    a, b = torch.randn(2, 1, 16, 1, 3, 4, generator=torch.Generator().manual_seed(1))
    turn = torch.arange(frames).view(1, 1, -1, 1, 1) * 0.3
    return a * turn.cos() + b * turn.sin()


@pytest.mark.parametrize("frames", [1, 7, 24, 25])
@pytest.mark.parametrize(("chunk", "overlap"), [(1, 1), (5, 3), (24, 8)])
def test_parts_cover_every_picture_once(frames, chunk, overlap):
    def pixels(n):
        return max(0, 4 * n - 3)

    seen = []
    for part in parts(frames, chunk, overlap):
        cut = kept(part, pixels)
        where = torch.arange(pixels(part.start), pixels(part.start) + pixels(part.end) - pixels(part.start))
        assert part.start == 0 or part.first - part.start == overlap
        base = 0 if part.start == 0 else pixels(part.start) + 3  # a part that starts inside the clip makes one picture of its first frame, not four
        seen += [base + i for i in range(cut.start, cut.stop)]
        assert len(where)
    assert seen == list(range(pixels(frames)))


@pytest.mark.parametrize("chunk", [1, 3, 4, 40])
def test_exact_equals_one_whole_decode(vae, chunk):
    z = noise(9)
    whole = vae.decode(z)[0]
    out, method = decode(vae, z, chunk=chunk)
    assert method == "exact" and out.shape == whole.shape == (33, 24, 32, 3)
    assert float((out - whole).abs().max()) < 1e-6


def test_overlap_comes_close_and_more_overlap_closer(vae):
    z = steady(30)
    whole = vae.decode(z)[0]
    errors = [float((decode(vae, z, "overlap", chunk=10, overlap=n)[0] - whole).abs().max()) for n in (1, 6, 12)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01, errors


def test_progress_is_told(vae):
    told = []
    decode(vae, noise(7), chunk=3, progress=lambda done, total: told.append((done, total)))
    _, group = frame_decoder(vae.first_stage_model)
    assert told == [(end, 7) for end in [*starts_of(7, 3, group)[1:], 7]]


def test_parts_of_a_stream_end_between_groups():
    assert starts_of(7, 3, 1) == [0, 3, 6]
    assert starts_of(7, 3, 2) == [0, 1, 3, 5]  # a frame, then pairs
    assert starts_of(9, 4, 2) == [0, 3, 7] and starts_of(1, 4, 2) == [0]
    assert starts_of(4, 1, 2) == [0, 1, 3]


def test_wan22_vae_hands_on_too():
    """The TI2V VAE's class, tiny: its decoder is told which frame is the first."""
    host_inprocess.import_host()
    from comfy.ldm.wan.vae2_2 import WanVAE

    torch.manual_seed(0)
    model = WanVAE(dim=16, dec_dim=16, z_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[], temperal_downsample=[False, True, True]).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    z = torch.randn(1, 8, 4, 2, 2)
    step, group = frame_decoder(model)
    assert group == 1
    out = torch.cat([step(z[:, :, i : i + 1]) for i in range(4)], 2)
    assert torch.allclose(out, model.decode(z), atol=1e-5)


def test_what_is_no_video_is_refused(vae):
    for z, how, words in (
        (torch.zeros(1, 16, 4, 4), {}, "must be of video"),
        (noise(2), {"method": "other"}, "choose one of"),
        (noise(2), {"overlap": 0}, "1 or more"),
    ):
        with pytest.raises(LoomError, match=words):
            decode(vae, z, **how)


def test_exact_is_refused_where_it_cannot_be(vae):
    class Foreign:
        upscale_ratio = vae.upscale_ratio
        first_stage_model = torch.nn.Linear(1, 1)

    assert can_stream(vae) and not can_stream(Foreign())
    with pytest.raises(LoomError, match="Linear cannot be decoded frame by frame"):
        decode(Foreign(), noise(2), "exact")

"""What family adapters tell of rotary positions, against the host's own tables and embeddings."""

from dataclasses import dataclass

import later_hosts
import pytest
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.families import family_of
from attention_loom.core.methods.base import Method
from attention_loom.core.methods.riflex import frame_times
from attention_loom.kernels.plan import Rotation
from observing import understood
from tiny_models import sample as run
from tiny_models import tiny

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


ROPE = ["wan", "hunyuan_video", "ltx", "cosmos", "cosmos_predict2"]
FRAMES = {"ltx": (1, 128, 9, 2, 3)}


def stock_rotations(name, diffusion, frames, rate=None, causal=False):
    """[T, H|1, D/2, 2, 2] of the host: rotation of every channel pair of the first token of each frame."""
    if name == "wan":
        return diffusion.rope_encode(frames, 4, 6, device="cpu", dtype=torch.float32)[0, ::6].double()
    if name == "hunyuan_video":
        return diffusion.pe_embedder(diffusion.img_ids(torch.zeros(1, 16, frames, 4, 6)))[0, 0, ::6].unsqueeze(1).double()
    if name == "ltx":
        import comfy.ldm.lightricks.model as ltx

        _, where = diffusion.patchifier.patchify(torch.zeros(1, 1, frames, 2, 3))
        pixels = ltx.latent_to_pixel_coords(where, diffusion.vae_scale_factors, causal).double()
        pixels[:, 0] /= rate or 25.0
        owner, table = later_hosts.ltx_table(diffusion)
        more = {} if owner is ltx else {"use_middle_indices_grid": diffusion.use_middle_indices_grid, "num_attention_heads": 2}
        made = later_hosts.ltx_rotations(getattr(owner, table)(pixels, diffusion.inner_dim, torch.float64, **more))[::6]
        return made if made.shape[1] > 1 else made[:, 0].unflatten(1, (2, -1))
    return diffusion.pos_embedder(torch.zeros(1, frames, 2, 3, 64), fps=rate)[::6].unsqueeze(1).double()


@pytest.mark.parametrize(
    ("name", "rate", "causal"),
    [(n, None, False) for n in ROPE] + [("ltx", 24.0, False), ("ltx", None, True), ("cosmos", 12, False), ("cosmos_predict2", 12, False)],
)
def test_rope_describes_the_hosts_temporal_angles(name, rate, causal, monkeypatch):
    diffusion = tiny(name).patcher.model.diffusion_model
    if causal:
        monkeypatch.setattr(diffusion, "causal_temporal_positioning", True)
    frames = 7
    stock = stock_rotations(name, diffusion, frames, rate, causal)
    axis = family_of(diffusion).rope(diffusion, {"frame_rate": rate, "fps": rate})
    assert (axis.per_frame.diff() < 0).all() and axis.times(frames).shape == (frames,)
    width = stock.shape[2]
    assert axis.pair_of.shape in ((1, width), (stock.shape[1], width))

    known = axis.pair_of >= 0
    speed = torch.where(known, axis.per_frame[axis.pair_of.clamp(min=0)], 0.0)
    angle = (axis.times(frames) - axis.times(frames)[0])[:, None, None] * speed
    # relative to frame 0: R(t) R(0)^T, which a constant offset of the angle does not touch
    relative = stock @ stock[:1].transpose(-1, -2)
    expected = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))
    # the host computes LTX's fastest angles (thousands of radians) in single precision
    assert torch.allclose(relative, expected, atol=5e-3 if name == "ltx" else 1e-5)


@dataclass(frozen=True)
class Turn(Method):
    """Scales one temporal frequency, by relative rotation."""

    owner = "turn"
    index: int = 0
    factor: float = 1.5

    def wants(self, call):
        return call.kind in ("self", "joint") and call.rope is not None

    def contribute(self, call, draft):
        axis = call.rope
        freqs = (axis.pair_of == self.index).float()[None] * float(axis.per_frame[self.index]) * (self.factor - 1)
        times = [frame_times(layout, axis, "cpu") for layout in (call.q, call.k)]
        draft.rotate(self.owner, Rotation(*times, freqs, axis.pairing))


class Spliced(torch.nn.Module):
    """The host's embedder with one temporal frequency scaled: that channel pair taken from scaled positions."""

    def __init__(self, embedder, index, factor):
        super().__init__()
        object.__setattr__(self, "embedder", embedder)
        self.index, self.factor, self.axes_dim, self.theta = index, factor, embedder.axes_dim, embedder.theta

    def forward(self, ids):
        moved = ids.clone()
        moved[..., 0] *= self.factor
        out = self.embedder(ids)
        out[..., self.index, :, :] = self.embedder(moved)[..., self.index, :, :]
        return out


def hosts_own_way(name, model, index, factor, monkeypatch):
    """The latent when the host's positional embedding itself is changed."""
    patcher = model.patcher.clone()
    diffusion = model.patcher.model.diffusion_model
    if name in ("wan", "hunyuan_video"):
        slot = "rope_embedder" if name == "wan" else "pe_embedder"
        patcher.add_object_patch(f"diffusion_model.{slot}", Spliced(getattr(diffusion, slot), index, factor))
        return run(patcher, model, 1)
    if name == "ltx":
        owner, table = later_hosts.ltx_table(diffusion)
        original = getattr(owner, table)
        pair = diffusion.inner_dim % 6 // 2 + 3 * (diffusion.inner_dim // 6 - 1 - index)

        def precompute(grid, *args, **kwargs):
            moved = grid.clone()
            moved[:, 0] *= factor
            theirs = original(moved, *args, **kwargs)
            source = theirs[0] if isinstance(theirs, tuple) else theirs

            def splice(rotations, axis):
                heads = rotations.shape[2] if axis == 1 else 1  # heads told apart lie side by side in the whole width
                head, place = divmod(pair, diffusion.inner_dim // 2 // heads)
                where = (..., head, place, slice(None), slice(None)) if axis == 1 else (..., pair, slice(None), slice(None))
                rotations[where] = source[where]
                return rotations

            return later_hosts.on_ltx_table(original(grid, *args, **kwargs), splice)

        with monkeypatch.context() as patch:
            patch.setattr(owner, table, precompute)
            return run(patcher, model, 1)
    original = diffusion.pos_embedder.generate_embeddings

    def generate(shape, **kwargs):
        b, t, h, w, c = shape
        out = original(shape, **kwargs).unflatten(0, (t, h, w))
        wide = original((b, t * int(factor), h, w, c), **kwargs).unflatten(0, (t * int(factor), h, w))
        out[..., index, :, :] = wide[:: int(factor), ..., index, :, :]
        return out.flatten(0, 2)

    with monkeypatch.context() as patch:
        patch.setattr(diffusion.pos_embedder, "generate_embeddings", generate)
        return run(patcher, model, 1)


@pytest.mark.parametrize("index", [0, 1, -1])
@pytest.mark.parametrize("name", ROPE)
def test_relative_rotation_equals_changing_the_hosts_embedding(name, index, monkeypatch):
    model = tiny(name, latent=FRAMES.get(name, (1, 16, 9, 4, 6)))
    diffusion = model.patcher.model.diffusion_model
    speeds = family_of(diffusion).rope(diffusion).per_frame
    if name == "ltx" and index == 0:
        index = len(speeds) // 2  # the fastest angles are beyond single precision in the host itself
    index %= len(speeds)
    factor = max(2.0, round(1 / (4 * float(speeds[index]))))  # enough to see even of the slowest
    stock = run(model.patcher, model, 1)
    theirs = hosts_own_way(name, model, index, factor, monkeypatch)
    patched = attach(model.patcher, Turn(index, factor))
    ours = run(patched, model, 1)
    assert understood(record_of(patched).last) and record_of(patched).last.touched["turn"] > 0

    def apart(a, b):
        return float((a - b).norm() / b.norm())

    assert apart(ours, theirs) < 1e-5
    assert apart(stock, theirs) > 1e-4


@pytest.mark.parametrize("name", ["mochi", "flux", "sd3", "sd15", "hunyuan_image"])
def test_models_without_a_temporal_axis_have_none(name):
    diffusion = tiny(name).patcher.model.diffusion_model
    assert family_of(diffusion).rope(diffusion) is None

"""What family adapters tell of rotary positions, against the host's own tables and embeddings."""

from dataclasses import dataclass, field

import later_hosts
import pytest
import torch
from attention_loom.core.attach import attach, record_of
from attention_loom.core.families import family_of
from attention_loom.core.methods.base import Method
from attention_loom.core.methods.riflex import frame_times
from attention_loom.kernels.plan import Rotation
from attention_loom.kernels.stages import rotate
from observing import understood
from tiny_models import here, tiny
from tiny_models import sample as run

pytestmark = [pytest.mark.host, pytest.mark.usefixtures("host")]


ROPE = ["wan", "hunyuan_video", "ltx", "cosmos", "cosmos_predict2", *here("cogvideo", "cogvideo_15", "kandinsky5")]
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
    if name == "kandinsky5":
        return diffusion.rope_encode_3d(frames, 4, 6, device="cpu", dtype=torch.float32)[0, ::6].double()
    if name.startswith("cogvideo"):
        cos, sin = (x[::6, None, ::2].double() for x in diffusion._get_rotary_emb(2, 3, frames, "cpu"))
        return torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))
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
    slot = {"wan": "rope_embedder", "hunyuan": "pe_embedder", "kandinsky5": "rope_embedder_3d"}.get(name.split("_")[0])
    if slot is not None:
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
    if name.startswith("cogvideo"):
        tables, step = diffusion._get_rotary_emb, int(factor)

        def both(h, w, t, device):
            stock, wide = tables(h, w, t, device), tables(h, w, t * step, device)
            for table, source in zip(stock, wide, strict=True):
                table[:, 2 * index : 2 * index + 2] = source.unflatten(0, (t * step, -1))[::step].flatten(0, 1)[:, 2 * index : 2 * index + 2]
            return stock

        with monkeypatch.context() as patch:
            patch.setattr(diffusion, "_get_rotary_emb", both)
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


@pytest.mark.parametrize("name", ["wan_fun_reference", "wan_phantom", "wan_humo_reference", *here("wan_dancer")])
def test_all_frames_of_wan_turn_as_the_host_counts_them(name, monkeypatch):
    """References before and behind the video stand in line with it; WanDancer counts thirtieths of a second."""
    model = tiny(name)
    diffusion = model.patcher.model.diffusion_model
    index = 4
    factor = 1 / float(family_of(diffusion).rope(diffusion).per_frame[index])
    theirs = hosts_own_way(name, model, index, factor, monkeypatch)
    stock, ours = run(model.patcher, model, 1), run(attach(model.patcher, Turn(index, factor)), model, 1)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5 < 1e-4 < float((stock - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("rate", [30, 24, 7.5])
def test_wan_dancers_frames_at_another_rate(rate):
    if not here("wan_dancer"):
        pytest.skip("this host lacks it")
    diffusion = tiny("wan_dancer").patcher.model.diffusion_model
    stock = diffusion.rope_encode(9, 4, 6, fps=rate, device="cpu", dtype=torch.float32)[0, ::6].double()
    axis = family_of(diffusion).rope(diffusion, {"fps": rate})
    angle = axis.times(9)[:, None] * axis.per_frame
    turned = stock[:, 0, : len(axis.per_frame)]
    assert torch.allclose(turned[..., 0, 0], angle.cos(), atol=1e-5) and torch.allclose(turned[..., 1, 0], angle.sin(), atol=1e-5)


@pytest.mark.parametrize("name", ["mochi", "flux", "sd3", "sd15", "hunyuan_image", *here("kandinsky5_image", "cogvideo_learned_positions", "minimax_h3")])
def test_models_without_a_temporal_axis_have_none(name):
    diffusion = tiny(name).patcher.model.diffusion_model
    assert family_of(diffusion).rope(diffusion) is None


# --- the picture plane ------------------------------------------------------------------------------------------------

PLANE = here("anima", "krea2", "krea2_references", "ideogram4", "lens", "joyimage", "joyimage_edit", "mage_flow_edit", "hidream_o1", "z_image_pixel")
EMBEDDERS = dict.fromkeys(here("flux", "qwen_image", "hidream", "chroma_radiance", "longcat_image"), "pe_embedder")
EMBEDDERS |= dict.fromkeys(here("omnigen2_references", "boogu_references"), "rope_embedder.rope_embedder")
"""Where a model's table is made from the positions of all its tokens."""
MOVE = (1, 2)
"""Tokens downwards and to the right."""


def moved_picture(name, diffusion, monkeypatch):
    """The host's positions of the generated picture moved, in its own way of counting them."""
    move = torch.tensor([0, *MOVE])
    if name in EMBEDDERS:
        embedder = diffusion.get_submodule(EMBEDDERS[name])
        original = embedder.forward

        def embed(ids):
            ids = ids.clone()
            ids[:, slice(6) if name == "hidream" else slice(-6, None)] += move.to(ids)
            return original(ids)

        monkeypatch.setattr(embedder, "forward", embed)
    elif name == "anima":
        original = diffusion.pos_embedder.generate_embeddings

        def generate(shape, **kwargs):
            b, t, h, w, c = shape
            wide = original((b, t, h + MOVE[0], w + MOVE[1], c), **kwargs).unflatten(0, (t, h + MOVE[0], w + MOVE[1]))
            return wide[:, MOVE[0] :, MOVE[1] :].flatten(0, 2)

        monkeypatch.setattr(diffusion.pos_embedder, "generate_embeddings", generate)
    elif name.startswith("joyimage"):
        original = diffusion._get_rotary_pos_embed_for_range

        def table(start, stop, device=None):
            by = (0, *MOVE) if start[0] == 0 else (0, 0, 0)
            return original(tuple(a + d for a, d in zip(start, by)), tuple(b + d for b, d in zip(stop, by)), device=device)

        monkeypatch.setattr(diffusion, "_get_rotary_pos_embed_for_range", table)
    elif name == "lens":
        import comfy.ldm.lens.model as lens

        ids = lens._lens_position_ids

        def positions(frame, height, width, *args, **kwargs):
            return torch.cat([(out := ids(frame, height, width, *args, **kwargs))[: height * width] + move, out[height * width :]])

        monkeypatch.setattr(lens, "_lens_position_ids", positions)
    elif name == "z_image_pixel":
        import comfy.ldm.lumina.model as lumina

        positions_of = lumina.pos_ids_x
        monkeypatch.setattr(lumina, "pos_ids_x", lambda *args, **kwargs: positions_of(*args, **kwargs) + move)
    elif name == "hidream_o1":
        table = diffusion.language_model.compute_freqs_cis

        def turned(ids, device):
            return table(torch.cat([ids[:, :-6], ids[:, -6:] + move[:, None]], 1), device)

        monkeypatch.setattr(diffusion.language_model, "compute_freqs_cis", turned)
    elif name == "ideogram4":
        original = diffusion._image_position_ids
        monkeypatch.setattr(diffusion, "_image_position_ids", lambda *args: original(*args) + move)
    else:
        process = diffusion.process_img

        def moved(x, index=0):
            tokens, ids, *rest = process(x, index=index)
            return (tokens, ids + move if index == 0 else ids, *rest)

        monkeypatch.setattr(diffusion, "process_img", moved)


@dataclass(frozen=True)
class FirstKeys(Method):
    """Keeps the keys of the first call on the picture, in a main block or in a refiner before it."""

    owner = "first keys"
    kept: list = field(default_factory=list, compare=False)

    def contribute(self, call, draft):
        if (call.block.ordinal == 0 or call.block.kind == "noise_refiner") and not self.kept:
            draft.watch(self.owner, lambda seen: self.kept.append((call, seen.k.detach().clone())))


@pytest.mark.parametrize("name", [*PLANE, *EMBEDDERS])
def test_moving_the_hosts_positions_turns_keys_as_the_plane_says(name, monkeypatch):
    model = tiny(name)

    def keys():
        method = FirstKeys()
        run(attach(model.patcher, method), model, 1, cfg=1.0)
        return method.kept[0]

    call, before = keys()
    with monkeypatch.context() as patch:
        moved_picture(name, model.patcher.model.diffusion_model, patch)
        after = keys()[1]
    where = (call.k.positions(torch.device("cpu")) >= 0).float()
    expected = rotate(before, where[:, None] * torch.tensor(MOVE, dtype=torch.float32), call.plane.freqs, call.plane.pairing)
    assert (after - before).abs().amax() > 0.1
    # these count from 65536 and 4096, in single precision
    assert torch.allclose(after, expected, atol={"ideogram4": 2e-2, "hidream_o1": 2e-3}.get(name, 1e-5))


@pytest.mark.parametrize(("name", "stretched"), [("flux", True), ("chroma", False), ("chroma_radiance", False)])
def test_a_stretch_of_the_plane_is_read_where_the_host_does(name, stretched, monkeypatch):
    model = tiny(name)
    diffusion, options = model.patcher.model.diffusion_model, {"rope_options": {"scale_x": 2.0, "scale_y": 1.0}}
    tables, embedder = [], diffusion.pe_embedder
    original = embedder.forward
    monkeypatch.setattr(embedder, "forward", lambda ids: (tables.append(original(ids)), tables[-1])[1])
    patcher = model.patcher.clone()
    for more in ({}, options):
        patcher.model_options["transformer_options"] = more
        run(patcher, model, 1, cfg=1.0)
    stock, theirs = tables
    assert torch.equal(stock, theirs) != stretched
    plain, ours = (family_of(diffusion).plane(diffusion, more).freqs for more in ({}, options))
    assert torch.equal(ours, plain * torch.tensor([1.0, 2.0 if stretched else 1.0])[:, None, None])

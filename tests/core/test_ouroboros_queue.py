"""The queue of an endless clip and its tail, without a model: coverage, order, telescoped sums, filters."""

import random

import pytest
import torch
from attention_loom.core.errors import LoomError
from attention_loom.core.samplers import queue, tail
from attention_loom.core.samplers.queue import Layout

SIZES = [(f, n) for f in (2, 3, 4, 5, 16, 17, 21) for n in (1, 2, 4)]
CASES = [(f, n, ahead) for f, n in SIZES for ahead in (True, False)]


def falling(steps):
    return torch.linspace(1.0, 0.0, steps + 1)


# --- the queue ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("f", "n", "ahead"), CASES)
def test_every_slot_behind_the_pinned_ones_is_written_once(f, n, ahead):
    layout = Layout(f, n, ahead)
    assert layout.levels == f * n and layout.length == f * n + (f // 2 if ahead else 0)
    written = torch.zeros(layout.length, dtype=torch.long)
    for window in layout.windows():
        assert window.end - window.start == f and window.start >= 0 and window.end <= layout.length
        written[window.mid : window.end] += 1
    assert written[: layout.pinned].sum() == 0
    assert (written[layout.pinned :] == 1).all()
    assert len(layout.windows()) == (2 * n if ahead else n)


def test_the_worked_example_of_the_method_page():
    layout = Layout(3, 2)
    table = [(w.number, list(range(w.start, w.end)), [layout.level(s) for s in range(w.start, w.end)], list(range(w.mid, w.end))) for w in layout.windows()]
    assert table == [(3, [4, 5, 6], [3, 4, 5], [6]), (2, [3, 4, 5], [2, 3, 4], [4, 5]), (1, [1, 2, 3], [0, 1, 2], [3]), (0, [0, 1, 2], [0, 0, 1], [1, 2])]
    assert (layout.length, layout.pinned, layout.warm_up) == (7, 1, 3)


@pytest.mark.parametrize(("f", "n"), [(16, 4), (17, 2), (21, 4), (3, 2)])
def test_in_their_own_order_no_window_reads_a_slot_already_written(f, n):
    done = set()
    for window in Layout(f, n).windows():
        assert not done & set(range(window.start, window.end))
        done |= set(range(window.mid, window.end))


def test_lookahead_keeps_cleaner_frames_before_what_is_written():
    """Every written slot stands behind at least floor(f/2) frames of its window."""
    assert all(w.mid - w.start >= w.end - w.start - -(-(w.end - w.start) // 2) for w in Layout(21, 4).windows())


def model(window, x):
    """Something that depends on every slot of the window and on its place."""
    return x * 0.9 + x.mean(2, keepdim=True).sin() * 0.1


@pytest.mark.parametrize(("f", "n", "ahead"), [(4, 3, True), (5, 2, True), (21, 2, True), (4, 2, False)])
def test_the_order_of_the_windows_plays_no_part(f, n, ahead):
    layout = Layout(f, n, ahead)
    start = torch.randn(1, 2, layout.length, 3, 3, generator=torch.Generator().manual_seed(0))
    before = start.clone()
    expected = queue.iterate(start, layout.windows(), model)
    assert torch.equal(start, before)  # what is read stays as it was
    for seed in range(4):
        windows = list(layout.windows())
        random.Random(seed).shuffle(windows)
        assert torch.equal(queue.iterate(before.clone(), windows, model), expected)
    assert torch.equal(expected[:, :, : layout.pinned], start[:, :, : layout.pinned])


@pytest.mark.parametrize(("f", "n", "ahead"), [(3, 2, True), (4, 2, False), (5, 3, True)])
def test_constant_velocity_telescopes_whatever_n_and_lookahead(f, n, ahead):
    """v = c: every frame leaves with its own start plus the sum of the level differences it went through, here -level."""
    layout = Layout(f, n, ahead)
    levels = queue.ascending(falling(layout.levels), layout).double()
    clip = torch.arange(f, dtype=torch.float64).view(1, 1, f, 1, 1)
    c = 0.7
    state = queue.first_queue(clip, layout, lambda frame, level, slot: frame + c * levels[level])

    def step(window, x):
        slots = range(window.start, window.end)
        change = [(levels[layout.level(s) - 1] if layout.level(s) else 0.0) - levels[layout.level(s)] for s in slots]
        return x + c * torch.tensor(change, dtype=torch.float64).view(1, 1, -1, 1, 1)

    got = []
    for _ in range(layout.warm_up + 2 * f):
        new = queue.iterate(state, layout.windows(), step)
        got.append(float(new[0, 0, layout.pinned, 0, 0]))
        state = queue.shift(new, torch.full((1, 1, 1, 1, 1), 100.0, dtype=torch.float64))
        assert state.shape[2] == layout.length
    expected = [0.0] * layout.warm_up + list(range(f)) + [100.0 - c * float(levels[-1])] * f
    assert got == pytest.approx(expected, abs=1e-12)


def test_frames_are_counted_from_the_first_that_counts():
    layout = Layout(4, 3, True)
    assert layout.warm_up == 8
    assert layout.frame(layout.pinned, 8) == 0  # what leaves in the first iteration that counts
    assert layout.frame(layout.length - 1, 0) == 3
    assert layout.frame(layout.pinned, 0) == -8


def test_the_first_queue_holds_the_clip_behind_copies_of_its_first_frame():
    layout = Layout(4, 2, True)
    clip = torch.arange(4.0).view(1, 1, 4, 1, 1) + 10
    state = queue.first_queue(clip, layout, lambda frame, level, slot: frame + 100 * level)
    assert state.flatten().tolist() == [10, 10, *(10 + 100 * i for i in range(4)), 410, 511, 612, 713]


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        (falling(7), "exactly 4 x 2 = 8"),
        (falling(8) + 0.1, "ends at sigma 0.1"),
        (torch.tensor([1, 0.9, 0.9, 0.7, 0.6, 0.5, 0.4, 0.3, 0]), "same or a rising sigma"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(sigmas, words):
    with pytest.raises(LoomError, match=words):
        queue.ascending(sigmas, Layout(4, 2))


def test_levels_rise_without_the_final_zero():
    assert queue.ascending(falling(4), Layout(2, 2)).tolist() == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("f", "n", "words"), [(1, 4, "at least 2"), (4, 0, "1 or more")])
def test_layouts_that_make_no_sense_are_refused(f, n, words):
    with pytest.raises(LoomError, match=words):
        Layout(f, n)


def test_noise_depends_on_seed_and_key_alone():
    x = torch.zeros(1, 4, 1, 8, 8)
    a = queue.noise_like(x, 5, 1, 2)
    torch.manual_seed(123)
    assert torch.equal(queue.noise_like(x, 5, 1, 2), a)
    others = [queue.noise_like(x, *key) for key in ((6, 1, 2), (5, 2, 1), (5, 1, 3), (5, 1), (2**63 + 5, 1, 2))]
    assert all(not torch.equal(o, a) for o in others)
    assert abs(float(torch.corrcoef(torch.stack([a.flatten(), queue.noise_like(x, 5, 1, 3).flatten()]))[0, 1])) < 0.2


# --- the tail -------------------------------------------------------------------------------------------------------


def test_the_source_filter_has_the_numbers_of_the_release():
    g = tail.source_gain(40, 64)
    assert g.max() == pytest.approx(0.6065, abs=1e-4)
    assert divmod(int(g.argmax()), 64) == (20, 32)
    kept, fresh = tail.weights(g, renorm=False)
    assert float((kept**2 + fresh**2).mean()) == pytest.approx(0.917, abs=1e-3)
    kept, fresh = tail.weights(g, renorm=True)
    assert torch.allclose(kept**2 + fresh**2, torch.ones_like(g))


def test_the_centred_filter_keeps_the_mean_and_is_symmetric():
    for h, w in ((40, 64), (39, 63), (7, 8)):
        g = tail.gain(h, w, tail.Coherent())
        assert g[0, 0] == 1 and g.max() == 1
        assert torch.equal(g[1:], g[1:].flip(0)) and torch.equal(g[:, 1:], g[:, 1:].flip(1))


@pytest.mark.parametrize("size", [(40, 64), (39, 63), (8, 7)])
def test_the_centred_mix_is_real(size):
    g = torch.Generator().manual_seed(0)
    z = torch.randn(1, 4, 1, *size, generator=g, dtype=torch.float64)
    back = torch.fft.ifft2(tail.gain(*size, tail.Coherent()) * torch.fft.fft2(z))
    assert float(back.imag.abs().max() / back.real.abs().max()) < 1e-6


@pytest.mark.parametrize(("name", "renorm", "variance"), [("source", False, 0.917), ("source", True, 1.0), ("centred", True, 1.0)])
def test_variance_of_the_mix(name, renorm, variance):
    g = torch.Generator().manual_seed(1)
    z, noise = torch.randn(2, 64, 16, 1, 40, 64, generator=g)
    assert float(tail.mixed(z, noise, tail.Coherent(name), renorm).var()) == pytest.approx(variance, abs=0.01)


@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("name", tail.FILTERS)
def test_a_filter_that_keeps_nothing_is_fresh_noise_bit_for_bit(name, renorm):
    z, noise = torch.randn(2, 1, 4, 1, 9, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(tail.mixed(z, noise, tail.Coherent(name, width=0.0), renorm), noise)


def test_a_filter_that_keeps_everything_is_the_old_frame():
    z, noise = torch.randn(2, 1, 4, 1, 9, 8, generator=torch.Generator().manual_seed(3))
    out = tail.mixed(z, noise, tail.Coherent(width=float("inf")), renorm=True)
    assert torch.allclose(out, z, atol=1e-6)
    assert torch.allclose(tail.renoised_flow(3 * z, noise, rho=1.0), z / z.std(), atol=1e-6)


def test_the_mix_takes_low_frequencies_from_the_old_frame_and_high_ones_from_the_noise():
    z, noise = torch.randn(2, 1, 4, 1, 32, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64).float()
    spectrum = [torch.fft.fft2(x) for x in (tail.mixed(z, noise, tail.Coherent(), True), z, noise)]
    low, high = [s[..., 0, 0] for s in spectrum], [s[..., 16, 16] for s in spectrum]
    assert torch.allclose(low[0], low[1], atol=1e-3) and torch.allclose(high[0], high[2], atol=1e-2)


def test_forward_diffusion_reaches_the_top_variance():
    noise = torch.randn(200_000, generator=torch.Generator().manual_seed(5))
    old = 3.0 * torch.randn(200_000, generator=torch.Generator().manual_seed(6))
    assert float(tail.renoised(old, noise, 3.0, 5.0).std()) == pytest.approx(5.0, rel=0.01)


@pytest.mark.parametrize(("settings", "words"), [({"filter": "x"}, "choose one of"), ({"width": -1.0}, "0 \\(fresh noise\\) or more"), ({"rho": 2.0}, "between 0")])
def test_tail_settings_are_checked(settings, words):
    with pytest.raises(LoomError, match=words):
        tail.Coherent(**settings)

"""The pictures: every cell has the colour of its value, nothing is transposed, all sizes stay readable."""

import numpy as np
import pytest
import torch
from attention_loom.core.call import Block, Span, TokenLayout
from attention_loom.core.errors import LoomError
from attention_loom.core.inspect.draw.canvas import COLOUR_MAPS, FINE, HEAD, LONGEST, MARGIN, Page, colours, named
from attention_loom.core.inspect.draw.curves import ring_sizes
from attention_loom.core.inspect.draw.heatmap import cell_size, heatmap, left_edge
from attention_loom.core.inspect.draw.maps import combined, fitted, overlay
from attention_loom.core.inspect.gallery import PICTURES, Look, draw
from attention_loom.core.inspect.measure import measure
from attention_loom.core.inspect.study import Place, Setting, Study, add_map
from attention_loom.core.inspect.summary import top_heads

LAYERS, HEADS = 3, 5


def study(grid=(1, 4, 8), layers=LAYERS, heads=HEADS, text=3, words=False):
    """A study of random attention: joint in every layer."""
    span = Span("image" if grid[0] == 1 else "video", grid[0] * grid[1] * grid[2], grid)
    layout = TokenLayout((Span("text", text), span)) if text else TokenLayout((span,))
    made = Study("FLUX", layers, 4, Setting((0.0, 0.5), "positive", 64, ("cat", "dog") if words else (), ((0.9, 0.1),) if words else ()), grid)
    g = torch.Generator().manual_seed(0)
    for i in range(layers):
        place = Place(i, "joint", 0, Block("double" if i < 2 else "single", i if i < 2 else i - 2, i, layers))
        for step in (0, 2):
            q, k = (2 * torch.randn(1, heads, layout.length, 8, generator=g) for _ in range(2))
            made.add(place, step, 1.0 - step / 4, measure(q, k, layout, layout, 64))
        if words:
            add_map(made.word_maps, place, torch.rand(2, *grid, generator=g))
            add_map(made.point_maps, place, torch.rand(1, *grid, generator=g))
    return made


def middle(picture, x, y):
    return picture.getpixel((round(x), round(y)))


@pytest.mark.parametrize("sort", ["by index", "by value"])
@pytest.mark.parametrize("colour_map", COLOUR_MAPS)
def test_every_cell_of_the_heat_map_has_the_colour_of_its_value(sort, colour_map):
    made = study()
    picture = heatmap(made, "distance", (), sort, colour_map=colour_map)
    values = np.stack([made.mean(p).scalars["distance"].numpy() for p in made.places()])
    cell, x0, y0 = cell_size(LAYERS, HEADS), left_edge(made.places()), HEAD + 22
    expected = colours((values - values.min()) / (values.max() - values.min()), colour_map)
    for r in range(LAYERS):
        order = range(HEADS) if sort == "by index" else np.argsort(-values[r])
        for c, head in enumerate(order):
            seen = middle(picture, x0 + (c + 0.5) * cell, y0 + (r + 0.5) * cell)
            assert np.abs(np.array(seen, int) - expected[r, head].astype(int)).max() <= 3, (r, head)
    assert middle(picture, x0 + (HEADS + 0.5) * cell, y0 + 0.5 * cell) == (255, 255, 255), "no cell beyond the last head"


def test_normalising_per_layer_gives_every_layer_both_ends():
    made = study()
    picture = heatmap(made, "distance", normalise="per layer")
    cell, x0, y0 = cell_size(LAYERS, HEADS), left_edge(made.places()), HEAD + 22
    ends = [tuple(c) for c in colours(np.array([0.0, 1.0])).tolist()]
    for r in range(LAYERS):
        row = [middle(picture, x0 + (c + 0.5) * cell, y0 + (r + 0.5) * cell) for c in range(HEADS)]
        for end in ends:
            assert min(max(abs(a - b) for a, b in zip(seen, end, strict=True)) for seen in row) <= 3


def test_nan_heads_are_empty_cells():
    made = study()
    made.mean(made.places()[0]).scalars["distance"][2] = float("nan")
    picture = heatmap(made, "distance")
    cell, x0 = cell_size(LAYERS, HEADS), left_edge(made.places())
    assert middle(picture, x0 + 2.5 * cell, HEAD + 22 + cell / 2) == (240, 241, 244)


@pytest.mark.parametrize("image", [False, True], ids=["map_alone", "over_the_image"])
def test_a_wide_map_is_not_transposed(image):
    """A 2:1 grid whose top right corner is marked."""
    found = np.zeros((1, 1, 4, 8), np.float32)
    found[0, 0, 0, 7] = 1.0
    under = np.full((1, 64, 128, 3), 0.5, np.float32) if image else None
    picture = overlay("t", "", ["w"], found, under)
    w, h = fitted(8, 4, 300)
    assert (w, h) == (300, 150)
    left, top = MARGIN + (w + 18 if image else 0), HEAD + 16 + 22
    corners = {
        name: np.array(middle(picture, left + x * w, top + y * h), int).sum()
        for name, (x, y) in {"tl": (0.04, 0.08), "tr": (0.96, 0.08), "bl": (0.04, 0.92), "br": (0.96, 0.92)}.items()
    }
    assert max(corners, key=corners.get) == "tr"
    assert max(v for n, v in corners.items() if n != "tr") < corners["tr"] - 100


def test_maps_of_all_layers_come_to_one_size():
    big, small = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 2, 4)
    big[0, 0, 0, 7] = small[0, 0, 0, 3] = 1.0
    a, b = (Place(i, "cross", 0, Block("input", i, i, 2)) for i in range(2))
    joined = combined({a: (2 * big, 2), b: (small, 1)})
    assert joined.shape == (1, 1, 4, 8)
    assert np.unravel_index(joined.argmax(), joined.shape) == (0, 0, 0, 7)
    assert combined({}) is None


def test_all_pictures_of_a_picture_model():
    made = study(words=True)
    heads = top_heads(made, "distance", 4, "lowest")
    image = np.random.default_rng(0).random((1, 32, 64, 3), np.float32)
    drawn = draw(made, "all", Look(), heads, image)
    assert len(drawn) == len(PICTURES) - 2  # no frames, no cross-attention
    for d in drawn:
        assert d.mode == "RGB"
        assert max(d.size) <= LONGEST
        assert d.width >= 640
    for name, why in (("frames", "has no frames"), ("cross-attention", "has no cross-attention")):
        with pytest.raises(LoomError, match=f"the picture '{name}' cannot be drawn: this model {why}"):
            draw(made, name, Look(), heads)


@pytest.mark.parametrize(
    ("grid", "layers", "heads", "text"), [((6, 3, 4), 2, 3, 0), ((1, 1, 1), 1, 1, 2), ((1, 8, 8), 70, 20, 4), ((2, 1, 5), 1, 2, 0)], ids=["video", "tiny", "sdxl", "flat"]
)
def test_sizes_of_every_kind(grid, layers, heads, text):
    made = study(grid, layers, heads, text, words=True)
    drawn = draw(made, "all", Look(count=24), top_heads(made, "entropy", 24), np.zeros((1 if grid[0] == 1 else 21, 32, 64, 3), np.float32))
    assert len(drawn) == len(PICTURES) - 1 - (grid[0] == 1)
    assert all(max(d.size) <= LONGEST for d in drawn)


def test_words_without_words_say_so():
    made = study()
    with pytest.raises(LoomError, match="no words were given to the Attention Inspector"):
        draw(made, "words", Look(), [])


def test_ring_sizes_are_mean_numbers_of_neighbours():
    _, y, x = grid = (1, 3, 5)
    places = [(a, b) for a in range(y) for b in range(x)]
    counts = np.zeros(5)
    for a, b in places:
        for c, d in places:
            counts[max(abs(a - c), abs(b - d))] += 1 / len(places)
    assert np.allclose(ring_sizes(grid), counts)


def test_colours():
    ramp = colours(np.linspace(0, 1, 64)).astype(float)
    light = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all(), "lighter is always more"
    assert len({named(i) for i in range(16)}) == 16
    page = Page(9999, 9999, "t")
    assert page.done().size == (LONGEST, LONGEST)
    assert page.image.size == (LONGEST * FINE, LONGEST * FINE)

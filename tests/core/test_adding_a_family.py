"""The page on adding a model family shows what is in the pack."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "adding-a-family.md").read_text(encoding="utf-8")


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_listing_is_the_adapter():
    assert blocks()[0] == (ROOT / "core" / "families" / "aura.py").read_text(encoding="utf-8")


def test_the_recipe_is_the_one_that_is_tested():
    recipes = (ROOT / "tests" / "core" / "tiny_recipes" / "more_pictures.py").read_text(encoding="utf-8")
    shown = {line for line in blocks()[1].splitlines() if line not in ("", "}")}
    assert len(shown) > 5 and shown <= set(recipes.splitlines())


def test_what_the_page_points_at_exists():
    for name in re.findall(r"`((?:core|nodes|tests)/[\w/]+\.py|[\w]+\.py|tests/core/tiny_recipes)`", PAGE):
        found = (ROOT / name).exists() or list(ROOT.glob(f"core/families/{name}")) or list(ROOT.glob(f"tests/core/{name}"))
        assert found, name

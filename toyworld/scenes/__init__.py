"""The second toy world: one to three textured objects on a textured ground, as clips or pictures, with captions that are always true.

`grammar` says what a caption may say, `draws` draws captions, `layout` places a caption's objects, `tracks` moves them, `textures` and
`render` turn a scene into pixels. `python -m attention_loom.toyworld.scenes OUT.png` shows a grid of scenes. What a picture or clip shows is
read back by `toyworld.readings` and scored by `toyworld.scores`. The first world (`toyworld.world`) and its checkpoints stay as they are.

Example: `render(random_scene(random.Random(0), Caption.parse("a red circle bouncing on a grey background")), frames=33)`.
"""

from .draws import Mix, random_caption
from .grammar import Caption, Ground, Thing
from .layout import Scene, random_scene
from .render import ground, render, render_batch

__all__ = ["Caption", "Ground", "Mix", "Scene", "Thing", "ground", "random_caption", "random_scene", "render", "render_batch"]

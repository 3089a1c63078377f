"""Are the files there, and are they the toy worlds' own?"""

from __future__ import annotations

from pathlib import Path

OURS = ("toyworld", "te_config", "toy_text")
"""Keys that the toy worlds' trainers write into a checkpoint's metadata, one of them in each file."""


class Absent(ValueError):
    """A checkpoint is not there: its rows cannot be drawn, others can. names: of the files."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.names = names
        paths = ", ".join(str(folder / name) for name in names)
        super().__init__(f"{paths} {'is' if len(names) == 1 else 'are'} not there: the clone is incomplete, or train it as toyworld/checkpoints/README.md says.")


def checked(folder: Path, models: tuple[tuple[str, str], ...]) -> dict[Path, str]:
    """Path -> folder of the host's models, for checkpoints in `folder`. Absent if one is not there, ValueError for a file that is broken or foreign."""
    found = {Path(folder) / name: kind for name, kind in models}
    if missing := [path.name for path in found if not path.is_file()]:
        raise Absent(Path(folder), missing)
    for path in found:
        if not any(key in _metadata(path) for key in OURS):
            raise ValueError(
                f"{path} was not written by the toy worlds' trainers, and the measures know those worlds only; give a folder that holds {', '.join(n for n, _ in models)}."
            )
    return found


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is no readable safetensors file ({error}); take it from the repository again or train it anew.") from None

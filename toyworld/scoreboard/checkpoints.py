"""Are the files there, and are they the toy world's own?"""

from __future__ import annotations

from pathlib import Path

OURS = ("toyworld", "te_config")
"""Keys that the toy world's trainers write into a checkpoint's metadata, one of them in each file."""


def checked(folder: Path, models: tuple[tuple[str, str], ...]) -> dict[Path, str]:
    """Path -> folder of the host's models, for checkpoints in `folder`. ValueError for a file that is absent, broken or foreign."""
    from safetensors import SafetensorError, safe_open

    found = {Path(folder) / name: kind for name, kind in models}
    for path in found:
        if not path.is_file():
            raise ValueError(f"{path} is not there: the clone is incomplete, or train it as toyworld/checkpoints/README.md says.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is no readable safetensors file ({error}); take it from the repository again or train it anew.") from None
        if not any(key in metadata for key in OURS):
            raise ValueError(
                f"{path} was not written by the toy world's trainers, and the measures know its world only; give a folder that holds {', '.join(n for n, _ in models)}."
            )
    return found

"""Recipes into workflow files: ``python -m attention_loom.tools.build_workflows`` (starts a headless host for its node list).

Node definitions come from the running host's ``/object_info``, so slots, widget order and defaults are the host's own.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

from .headless import ROOT, Headless
from .recipes import RECIPES, Node, Recipe

COLUMN, GAP, HEADER, SLOT, WIDGET = 380, 60, 46, 22, 26
WIDTH = 320
COLOUR = {"stock": "#3f5159", "4x, UltraViCo": "#3f789e"}


def api_graph(recipe: Recipe, info: dict[str, Any]) -> dict[str, Any]:
    """API format: every input filled, defaults included, ids as numbers in the order of the recipe."""
    number = _numbers(recipe)
    graph = {}
    for key, node in recipe.nodes.items():
        inputs: dict[str, Any] = {}
        for name, spec in _specs(info[node.kind]):
            value = node.inputs.get(name, _default(spec))
            if isinstance(value, list):
                value = [str(number[value[0]]), value[1]]
            if value is not None:
                inputs[name] = value
        title = node.title or info[node.kind]["display_name"]
        graph[str(number[key])] = {"class_type": node.kind, "inputs": inputs, "_meta": {"title": title}}
    return graph


def ui_graph(recipe: Recipe, info: dict[str, Any]) -> dict[str, Any]:
    """Format of the frontend: positions, slots, links, groups and a note."""
    number = _numbers(recipe)
    nodes = {key: _ui_node(number[key], node, info[node.kind]) for key, node in recipe.nodes.items()}
    links: list[list[Any]] = []
    for key, node in recipe.nodes.items():
        for name, value in node.inputs.items():
            if not isinstance(value, list):
                continue
            source, slot = nodes[value[0]], value[1]
            target = next(i for i, s in enumerate(nodes[key]["inputs"]) if s["name"] == name)
            kind = source["outputs"][slot]["type"]
            links.append([len(links) + 1, source["id"], slot, number[key], target, kind])
            source["outputs"][slot]["links"].append(len(links))
            nodes[key]["inputs"][target]["link"] = len(links)
    groups, bottom = _place(recipe, nodes)
    note = _note(len(nodes) + 1, recipe.note, bottom)
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"attention-loom/{recipe.name}")),
        "revision": 0,
        "last_node_id": len(nodes) + 1,
        "last_link_id": len(links),
        "nodes": [*nodes.values(), note],
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def build(info: dict[str, Any], folder: Path) -> list[Path]:
    """Write all workflows below ``folder``; returns the files."""
    written = []
    for make in RECIPES:
        recipe = make()
        for path, graph in ((folder / "api" / f"{recipe.name}.json", api_graph(recipe, info)), (folder / f"{recipe.name}.json", ui_graph(recipe, info))):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(graph, indent=2, ensure_ascii=False) + "\n")
            written.append(path)
    return written


def _numbers(recipe: Recipe) -> dict[str, int]:
    return {key: i + 1 for i, key in enumerate(recipe.nodes)}


def _specs(definition: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    """Inputs in the order of the widgets: required, then optional."""
    return [(name, spec) for part in ("required", "optional") for name, spec in definition["input"].get(part, {}).items()]


def _is_widget(spec: list[Any]) -> bool:
    kind = spec[0]
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def _default(spec: list[Any]) -> Any:
    if not _is_widget(spec):
        return None
    options = spec[1] if len(spec) > 1 else {}
    if "default" in options:
        return options["default"]
    choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
    return choices[0] if choices else ""


def _ui_node(number: int, node: Node, definition: dict[str, Any]) -> dict[str, Any]:
    sockets, values = [], []
    for name, spec in _specs(definition):
        if _is_widget(spec):
            value = node.inputs.get(name, _default(spec))
            if isinstance(value, list):  # a widget that takes its value through a link keeps its default
                sockets.append({"name": name, "type": spec[0], "widget": {"name": name}, "link": None})
                value = _default(spec)
            values.append(value)
            options = spec[1] if len(spec) > 1 else {}
            if options.get("control_after_generate", name in ("seed", "noise_seed") and spec[0] == "INT"):
                values.append("fixed")  # the hidden companion of a seed; without it later widgets shift by one
        else:
            sockets.append({"name": name, "type": spec[0], "link": None})
    outputs = [{"name": name, "type": kind, "slot_index": i, "links": []} for i, (name, kind) in enumerate(zip(definition["output_name"], definition["output"], strict=True))]
    long_text = sum(1 for n, s in _specs(definition) if s[0] == "STRING" and len(s) > 1 and s[1].get("multiline"))
    height = HEADER + SLOT * max(len(sockets), len(outputs)) + WIDGET * len(values) + 90 * long_text
    if node.kind in ("SaveAnimatedWEBP", "LoomReport", "SaveVideo", "LoomInspectorPictures", "LoomHeadHunter", "LoomEndlessSubject"):
        height += 220  # the preview it will show
    if node.kind == "LoomTrackEditor":
        height += 340  # the canvas in place of the text
    properties: dict[str, Any] = {"Node name for S&R": node.kind}
    if node.models:
        properties["models"] = node.models
    made = {
        "id": number, "type": node.kind, "pos": [0, 0], "size": [node.width or WIDTH, height], "flags": {}, "order": number - 1, "mode": 0,
        "inputs": sockets, "outputs": outputs, "properties": properties, "widgets_values": values,
    }  # fmt: skip
    if node.title:
        made["title"] = node.title
    return made


def _place(recipe: Recipe, nodes: dict[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
    """Groups as columns and rows; nodes of a group below each other. Returns the groups and the height of column 0."""
    filled: dict[int, float] = {}
    wide = _column_widths(recipe, nodes)
    groups = []
    for index, (title, (column, _row)) in enumerate(sorted(recipe.groups.items(), key=lambda g: g[1])):
        x, y = sum(wide[c] + GAP for c in range(column)), filled.get(column, 0.0)
        at = y + 60
        for key, node in recipe.nodes.items():
            if node.group == title:
                nodes[key]["pos"] = [x + 20, at]
                at += nodes[key]["size"][1] + 50
        groups.append({"id": index + 1, "title": title, "bounding": [x, y, wide[column], at - y], "color": COLOUR.get(title, "#3f5159"), "font_size": 24, "flags": {}})
        filled[column] = at + 40
    return groups, filled.get(0, 0.0)


def _column_widths(recipe: Recipe, nodes: dict[str, dict[str, Any]]) -> dict[int, int]:
    """Wide enough for the widest node of each column."""
    wide = dict.fromkeys(range(max(column for column, _ in recipe.groups.values()) + 1), COLUMN)
    for key, node in recipe.nodes.items():
        column = recipe.groups[node.group][0]
        wide[column] = max(wide[column], nodes[key]["size"][0] + 60)
    return wide


def _note(number: int, text: str, y: float) -> dict[str, Any]:
    return {
        "id": number, "type": "MarkdownNote", "pos": [0, y], "size": [COLUMN, 360], "flags": {}, "order": number - 1, "mode": 0,
        "inputs": [], "outputs": [], "properties": {}, "widgets_values": [text], "color": "#432", "bgcolor": "#653",
    }  # fmt: skip


def main() -> None:
    """Start a host, read its nodes, write the files."""
    with tempfile.TemporaryDirectory() as folder, Headless(Path(folder), packs={"toy-world": ROOT / "toyworld" / "comfy_node"}) as host:
        for path in build(host.get("/object_info"), ROOT / "workflows"):
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

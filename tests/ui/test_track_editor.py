"""The path editor in the real frontend, in a headless Chromium, on a real server: both renderers, subgraphs, reload, queue."""

import json
import os
import shutil

import pytest
from attention_loom.core.tracks import Tracks
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.server]
if CHROMIUM is None:
    pytestmark.append(pytest.mark.skip(reason="no Chromium on this machine; install one (Debian: apt-get install chromium) to run the browser tests"))

READY = "!!(window.app?.extensionManager && window.LiteGraph?.registered_node_types?.LoomTrackEditor)"
PANEL = "node => (node.widgets.find(w => w.name === 'track').element ?? document.querySelector('.loom-track')).trackPanel"


class Editor:
    """One page with one Draw Path node; places in the picture are given in parts of it."""

    def __init__(self, page, url):
        self.page, self.url = page, url

    def open(self, vue=False, scale=1.0):
        """A fresh page, so nothing of an earlier test is left."""
        self.page.goto(self.url, wait_until="domcontentloaded", timeout=120_000)
        self.page.wait_for_function(READY, timeout=150_000)
        self.page.evaluate("on => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue)
        self.page.wait_for_timeout(1200)
        self.page.evaluate("() => { app.graph.clear(); window.node = LiteGraph.createNode('LoomTrackEditor'); node.pos = [60, 60]; app.graph.add(node) }")
        self.page.keyboard.press("Escape")
        self.look_at(scale)
        self.page.errors.clear()
        return self

    def look_at(self, scale=1.0):
        # the renderers place the view themselves when a graph opens
        self.page.wait_for_timeout(700)
        self.page.evaluate(
            "scale => { app.canvas.ds.scale = scale; app.canvas.ds.offset = [140 / scale - node.pos[0], 130 / scale - node.pos[1]]; app.canvas.setDirty(true, true) }", scale
        )
        self.page.wait_for_selector(".loom-track .picture", state="visible")
        self.page.wait_for_timeout(700)

    def text(self):
        return self.page.evaluate("node.widgets.find(w => w.name === 'track').value")

    def data(self):
        return json.loads(self.text())

    def keys(self, index=0):
        return [k["frame"] for k in self.data()["objects"][index]["keys"]]

    def box(self, index=0, frame=0):
        tracks = Tracks.parse(self.text())
        return tracks.boxes()[index, frame].tolist()

    def state(self, name):
        return self.page.evaluate(f"name => ({PANEL})(node)[name]", name)

    def at(self, x, y):
        """Screen coordinates of a place in the picture."""
        rect = self.page.locator(".loom-track .picture").bounding_box()
        place, size = self.page.evaluate(f"() => {{ const p = ({PANEL})(node); return [p.place, p.stage.offsetWidth] }}")
        zoom = rect["width"] / size
        return rect["x"] + (place["x"] + x * place["w"]) * zoom, rect["y"] + (place["y"] + y * place["h"]) * zoom

    def drag(self, start, end):
        self.page.mouse.move(*self.at(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.at((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), steps=3)
        self.page.mouse.move(*self.at(*end), steps=3)
        self.page.mouse.up()
        self.page.wait_for_timeout(150)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
        self.page.wait_for_timeout(120)

    def on_timeline(self, frame, row=0):
        rect = self.page.locator(".loom-track .timeline").bounding_box()
        zoom, frames = rect["width"] / self.page.evaluate(f"() => ({PANEL})(node).lines.offsetWidth"), self.state("view")["frames"]
        return rect["x"] + (14 * zoom) + frame / (frames - 1) * (rect["width"] - 28 * zoom), rect["y"] + (18 + 22 * row + 11) * zoom

    def saved(self):
        """The workflow as a file has it."""
        return json.loads(self.page.evaluate("JSON.stringify(app.graph.serialize())"))

    def prompt(self):
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")


@pytest.fixture(scope="module")
def host(server):
    Image.linear_gradient("L").convert("RGB").resize((832, 480)).save(server.base / "input" / "ramp.png")
    return server


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def editor(host, browser, request):
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    # the page asks the vendor's servers for news; nothing outside this machine takes part in a test
    page.route(lambda url: not url.startswith(host.url), lambda route: route.abort())
    yield Editor(page, host.url)
    folder = request.config.getoption("--screenshots", default=None)
    if folder:
        page.screenshot(path=f"{folder}/{request.node.name}.png")
    page.close()


def near(box, wanted, tolerance=0.012):
    assert all(abs(a - b) < tolerance for a, b in zip(box, wanted)), f"{box} is not {wanted}"


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes2"])
def test_drawing_moving_resizing_undoing(editor, vue):
    """What a user does in the first minute."""
    editor.open(vue)
    place = editor.page.evaluate("[...node.pos]")
    near(editor.box(), (0.06, 0.4, 0.36, 0.84))
    editor.drag((0.2, 0.6), (0.4, 0.4))
    near(editor.box(), (0.26, 0.2, 0.56, 0.64))
    editor.drag((0.56, 0.64), (0.7, 0.8))
    near(editor.box(), (0.26, 0.2, 0.7, 0.8))
    editor.press("Control+z")
    near(editor.box(), (0.26, 0.2, 0.56, 0.64))
    editor.press("Control+z", "Control+z", "Control+z")
    near(editor.box(), (0.06, 0.4, 0.36, 0.84), 1e-9)
    editor.press("Control+y", "Control+Shift+z")
    near(editor.box(), (0.26, 0.2, 0.7, 0.8))
    # a new box beside the old one, at a new frame: a third key frame
    editor.page.mouse.click(*editor.on_timeline(40))
    editor.drag((0.05, 0.9), (0.25, 0.7))
    assert editor.keys() == [0, 40, 80]
    near(editor.box(frame=40), (0.05, 0.7, 0.25, 0.9))
    assert editor.page.evaluate("[...node.pos]") == place, "dragging in the editor does not move the node"
    assert editor.page.evaluate("app.graph._nodes.length") == 1, "the host's own undo did not act"
    assert editor.page.errors == []


def test_keys_timeline_and_several_objects(editor):
    editor.open()
    editor.page.mouse.click(*editor.at(0.2, 0.6))
    editor.press("End", "ArrowLeft", "Shift+ArrowUp", "Alt+Shift+ArrowDown")
    near(editor.box(frame=80), (0.62 - 1 / 832, 0.22 - 10 / 480, 0.94 - 1 / 832, 0.7), 1e-4)
    editor.press("Home", *["."] * 20, "k", "e")
    assert editor.keys() == [0, 20, 80]
    assert editor.data()["objects"][0]["keys"][1]["ease"] == "hold"
    editor.press("v")
    assert editor.data()["objects"][0]["keys"][1]["visible"] is False
    editor.press("v", "]")
    assert editor.state("frame") == 80
    editor.press("[", "Delete")
    assert editor.keys() == [0, 80]
    # the timeline: a double click makes a key frame, a drag moves it
    editor.page.mouse.dblclick(*editor.on_timeline(30))
    assert editor.keys() == [0, 30, 80]
    editor.page.mouse.move(*editor.on_timeline(30))
    editor.page.mouse.down()
    editor.page.mouse.move(*editor.on_timeline(55), steps=4)
    editor.page.mouse.up()
    assert editor.keys() == [0, 55, 80] and editor.state("frame") == 55
    # a second object, by key and by button; names
    editor.press("n")
    assert [o["name"] for o in editor.data()["objects"]] == ["subject", "object 2"] and editor.state("selected") == 1
    editor.press("Tab")
    assert editor.state("selected") == 0
    editor.page.locator(".loom-track .chip").nth(1).dblclick()
    editor.page.keyboard.type("bird")
    editor.press("Enter")
    assert [o["name"] for o in editor.data()["objects"]] == ["subject", "bird"]
    editor.press("Shift+Delete")
    assert [o["name"] for o in editor.data()["objects"]] == ["subject"]
    editor.press("Delete", "Home", "Delete", "Delete")
    assert len(editor.keys()) == 1, "the last key frame stays"
    # playing ends at the last frame
    editor.press("Control+z", "Home", " ")
    editor.page.wait_for_timeout(700)
    assert 2 <= editor.state("frame") < 80
    editor.press(" ")
    stopped = editor.state("frame")
    editor.page.wait_for_timeout(300)
    assert editor.state("frame") == stopped
    assert editor.page.errors == []


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes2"])
def test_saved_reloaded_copied(editor, vue):
    editor.open(vue)
    editor.drag((0.2, 0.6), (0.4, 0.4))
    drawn = editor.text()
    saved = editor.saved()
    assert drawn in [v for n in saved["nodes"] for v in n["widgets_values"]], "the widget's value is the JSON itself"
    editor.open(vue)
    assert editor.text() != drawn
    editor.page.evaluate("saved => app.loadGraphData(saved)", saved)
    editor.page.evaluate("() => { window.node = app.graph._nodes[0] }")
    editor.look_at()
    assert editor.text() == drawn
    editor.drag((0.4, 0.4), (0.5, 0.4))
    near(editor.box(), (0.36, 0.2, 0.66, 0.64))
    # a copy is its own drawing
    editor.page.evaluate("() => { window.first = node; window.node = first.clone(); node.pos = [700, 60]; app.graph.add(node) }")
    editor.page.wait_for_timeout(800)
    assert editor.text() == editor.page.evaluate("first.widgets[0].value")
    before = editor.text()
    editor.page.evaluate(f"() => {{ const p = ({PANEL})(node); p.newObject() }}")
    editor.page.wait_for_timeout(200)
    assert len(editor.data()["objects"]) == 2
    assert editor.page.evaluate("first.widgets[0].value") == before
    assert editor.page.errors == []


def into_subgraph(editor):
    """The node, drawn on, wrapped into a subgraph (``made``) that is open; what was drawn."""
    editor.drag((0.2, 0.6), (0.4, 0.4))
    drawn = editor.text()
    editor.page.evaluate("() => { window.made = app.graph.convertToSubgraph(new Set([node])) }")
    editor.page.wait_for_timeout(1000)
    editor.page.evaluate("() => { app.canvas.openSubgraph(made.subgraph, made.node); window.node = made.subgraph.nodes[0] }")
    editor.page.wait_for_timeout(1000)
    editor.look_at()
    return drawn


def shown_outside(editor):
    """Look at the subgraph's own node, which shows the promoted editor. Later frontends (1.49) show no extension's widget there: skipped, on another
    host than that of ``make setup``.
    """
    editor.page.wait_for_timeout(1000)
    if "COMFYUI_DIR" in os.environ and not editor.page.locator(".loom-track .picture").is_visible():
        pytest.skip("this frontend does not show an extension's widget on a subgraph")
    editor.look_at()


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes2"])
def test_in_a_subgraph(editor, vue):
    editor.open(vue)
    assert into_subgraph(editor) == editor.text()
    editor.drag((0.4, 0.4), (0.5, 0.5))
    near(editor.box(), (0.36, 0.3, 0.66, 0.74))
    inner = [n for n in editor.prompt().values() if n["class_type"] == "LoomTrackEditor"]
    assert [n["inputs"]["track"] for n in inner] == [editor.text()]
    assert editor.page.errors == []


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "nodes2"])
def test_as_an_input_of_its_subgraph_it_shows_on_the_outside(editor, vue):
    editor.open(vue)
    drawn = into_subgraph(editor)
    editor.page.evaluate("() => { const slot = node.inputs.find(i => i.name === 'track'); made.subgraph.addInput('track', 'STRING').connect(slot, node) }")
    editor.page.evaluate("() => { made.node.size = [520, 520]; app.canvas.setGraph(app.graph); window.node = made.node }")
    assert [n["inputs"]["track"] for n in editor.prompt().values()] == [drawn], "the drawing goes on being used, seen or not"
    shown_outside(editor)
    editor.drag((0.4, 0.4), (0.3, 0.4))
    near(editor.box(), (0.16, 0.2, 0.46, 0.64), 0.02)
    inner = [n for n in editor.prompt().values() if n["class_type"] == "LoomTrackEditor"]
    assert [n["inputs"]["track"] for n in inner] == [editor.text()]
    saved = editor.saved()
    wanted = editor.text()
    editor.page.evaluate("saved => app.loadGraphData(saved)", saved)
    editor.page.wait_for_timeout(1200)
    inner = [n for n in editor.prompt().values() if n["class_type"] == "LoomTrackEditor"]
    assert [n["inputs"]["track"] for n in inner] == [wanted]
    assert editor.page.errors == []


def test_the_hosts_own_undo_takes_an_edit_back(editor):
    editor.open()
    first = editor.text()
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    editor.page.evaluate(f"{tracker}.checkState()")
    steps = editor.page.evaluate(f"{tracker}.undoQueue.length")
    editor.page.mouse.click(*editor.at(0.2, 0.6))
    editor.press("ArrowRight")
    assert editor.text() != first
    assert editor.page.evaluate(f"{tracker}.undoQueue.length") == steps + 1, "an edit by keys is seen by the host"
    editor.page.evaluate(f"{tracker}.undo()")
    editor.page.wait_for_timeout(1200)
    editor.page.evaluate("() => { window.node = app.graph._nodes[0] }")
    assert editor.text() == first
    assert editor.page.errors == []


def test_promoted_as_a_widget_it_is_the_editor(editor):
    editor.open()
    editor.page.evaluate("() => { window.made = app.graph.convertToSubgraph(new Set([node])) }")
    editor.page.wait_for_timeout(1000)
    editor.page.evaluate("() => { made.node.size = [520, 520]; made.node.properties.proxyWidgets = [[String(made.subgraph.nodes[0].id), 'track']]; window.node = made.node }")
    shown_outside(editor)
    editor.page.evaluate("() => { window.node = made.subgraph.nodes[0] }")
    editor.drag((0.2, 0.6), (0.4, 0.4))
    near(editor.box(), (0.26, 0.2, 0.56, 0.64), 0.02)
    assert [n["inputs"]["track"] for n in editor.prompt().values()] == [editor.text()]
    assert editor.page.errors == []


@pytest.mark.parametrize("scale", [0.6, 1.6])
def test_the_mouse_points_where_it_should_at_any_zoom(editor, scale):
    editor.open(scale=scale)
    editor.drag((0.2, 0.6), (0.4, 0.4))
    near(editor.box(), (0.26, 0.2, 0.56, 0.64), 0.015)
    assert editor.state("stage") is not None and editor.page.errors == []


def test_fingers_get_larger_handles(editor):
    editor.open()
    x, y = editor.at(0.36, 0.84)
    touch = """([kind, x, y]) => document.querySelector('.loom-track .picture').dispatchEvent(new PointerEvent(kind,
        {pointerType: 'touch', pointerId: 7, button: 0, buttons: 1, clientX: x, clientY: y, bubbles: true, cancelable: true}))"""
    for kind, dx, dy in (("pointerdown", 15, 15), ("pointermove", 45, 35), ("pointerup", 45, 35)):
        editor.page.evaluate(touch, [kind, x + dx, y + dy])
    editor.page.wait_for_timeout(150)
    box = editor.box()
    near(box[:2], (0.06, 0.4), 1e-4)
    assert box[2] > 0.4 and box[3] > 0.86, "15 pixels beside the corner still pulls it"


def test_length_and_size_follow_the_other_inputs_and_lose_nothing(editor):
    editor.open()
    editor.page.mouse.dblclick(*editor.on_timeline(40))
    drawn = editor.text()
    for frames, middle in ((21, 10), (161, 80), (81, 40)):
        editor.page.evaluate("n => { node.widgets.find(w => w.name === 'frames').value = n }", frames)
        editor.page.wait_for_timeout(500)
        assert [k["frame"] for k in editor.state("view")["objects"][0]["keys"]] == [0, middle, frames - 1]
        assert editor.text() == drawn, "turning the length changes no drawing"
    editor.page.evaluate("node.widgets.find(w => w.name === 'frames').value = 2")
    editor.page.wait_for_timeout(500)
    assert "does not fit into 2" in editor.page.locator(".loom-track .status").text_content()
    # a linked number counts, and an edit is made for it
    editor.page.evaluate(
        "() => { const p = LiteGraph.createNode('PrimitiveInt'); app.graph.add(p); p.widgets[0].value = 41; p.connect(0, node, node.inputs.findIndex(i => i.name === 'frames')) }"
    )
    editor.page.wait_for_timeout(600)
    assert editor.state("view")["frames"] == 41
    editor.page.mouse.click(*editor.at(0.2, 0.6))
    editor.press("ArrowRight")
    assert editor.data()["frames"] == 41 and editor.keys() == [0, 20, 40]
    assert editor.page.errors == []


def test_the_background_is_shown_before_anything_ran(editor):
    editor.open()
    assert editor.state("image") is None
    editor.page.evaluate(
        "() => { const l = LiteGraph.createNode('LoadImage'); app.graph.add(l); l.widgets[0].value = 'ramp.png'; l.connect(0, node, node.inputs.findIndex(i => i.name === 'background')) }"
    )
    editor.page.wait_for_function(f"({PANEL})(node).image?.naturalWidth === 832", timeout=10_000)
    editor.page.wait_for_timeout(200)
    shades = (
        "y => { const p = ("
        + PANEL
        + ")(node); const r = p.stage.width / p.stage.offsetWidth; return p.stage.getContext('2d').getImageData((p.place.x + p.place.w * 0.97) * r, (p.place.y + p.place.h * y) * r, 1, 1).data[0] }"
    )
    dark, light = (editor.page.evaluate(shades, y) for y in (0.05, 0.95))
    assert dark < 40 and light > 200


def test_a_text_that_is_no_track_is_kept_and_explained(editor):
    editor.open()
    bad = '{"version": 1, "objects": [{"name": "cat", "keys": [{"frame": 0, "box": [0.5, 0.1, 0.2, 0.4]}]}]}'
    editor.page.evaluate("bad => { node.widgets[0].value = bad }", bad)
    editor.page.wait_for_timeout(400)
    assert editor.text() == bad
    assert 'object 1 "cat", key frame at 0: x1 0.2 is not right of x0 0.5' in editor.page.locator(".loom-track .status").text_content()
    field = editor.page.locator(".loom-track textarea")
    field.fill(bad.replace("0.5,", "0.05,").replace('"version": 1', '"version": 1, "extend": "hold"'))
    editor.page.get_by_text("Use this JSON").click()
    editor.page.wait_for_timeout(300)
    near(editor.box(), (0.05, 0.1, 0.2, 0.4))
    editor.drag((0.1, 0.2), (0.3, 0.3))
    near(editor.box(), (0.25, 0.2, 0.4, 0.5))
    # a text that says nothing of its length is for the clip's own
    bare = '{"version": 1, "objects": [{"name": "cat", "keys": [{"frame": 0, "box": [0, 0, 0.5, 0.5]}, {"frame": 48, "box": [0.5, 0.5, 1, 1]}]}]}'
    editor.page.evaluate("bare => { node.widgets[0].value = bare; node.widgets.find(w => w.name === 'frames').value = 49 }", bare)
    editor.page.wait_for_timeout(600)
    assert [k["frame"] for k in editor.state("view")["objects"][0]["keys"]] == [0, 48]
    assert editor.text() == bare and editor.state("error") == ""
    assert editor.page.errors == []


def test_queued_the_server_computes_what_the_editor_shows(editor, host):
    editor.open()
    editor.drag((0.2, 0.6), (0.4, 0.4))
    editor.page.mouse.click(*editor.on_timeline(31))
    editor.drag((0.05, 0.9), (0.3, 0.6))
    editor.press("e", "n", "v")
    editor.page.evaluate("() => { node.widgets.find(w => w.name === 'frames').value = 49 }")
    editor.page.wait_for_timeout(500)
    shown = editor.page.evaluate(f"async () => {{ const g = await import('/extensions/attention-loom/js/track_geometry.js'); return g.boxes(({PANEL})(node).view) }}")
    editor.page.evaluate(
        "() => { const s = LiteGraph.createNode('PreviewImage'); s.pos = [640, 60]; app.graph.add(s); node.connect(1, s, 0); const api = app.api ?? window.comfyAPI.api.api; "
        "window.done = new Promise(r => api.addEventListener('executed', e => e.detail.output.loom_track && r(e.detail.output))) }"
    )
    editor.page.evaluate("app.queuePrompt(0)")
    output = editor.page.evaluate("window.done")
    server = Tracks.parse(output["loom_track"][0])
    assert server.frames == 49 and len(server.objects) == 2
    computed = [[None if box[0] != box[0] else box for box in row] for row in server.boxes().tolist()]
    assert computed == shown
    editor.page.wait_for_function("app.graph._nodes.find(n => n.type === 'PreviewImage').imgs?.length >= 1", timeout=30_000)
    assert editor.page.errors == []

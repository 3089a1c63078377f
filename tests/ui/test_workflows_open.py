"""The bundled workflows in the real frontend, in a headless Chromium: they open, and convert to exactly the API files."""

import json
import os
import shutil

import pytest
from attention_loom.tools.headless import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.server]
if CHROMIUM is None:
    pytestmark.append(pytest.mark.skip(reason="no Chromium on this machine; install one (Debian: apt-get install chromium) to run the browser tests"))

NAMES = sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def page(server):
    from playwright.sync_api import sync_playwright

    server.post("/settings/Comfy.VueNodes.Enabled", False)  # the server remembers what another page has chosen
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1920, "height": 1080})
        tab.errors = []
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        # the page asks the vendor's servers for news; nothing outside this machine takes part in a test
        tab.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
        tab.goto(server.url, wait_until="domcontentloaded", timeout=120_000)
        tab.wait_for_function("!!(window.app?.extensionManager && window.LiteGraph?.registered_node_types?.LoomReport)", timeout=150_000)
        tab.errors.clear()
        yield tab
        assert tab.errors == [], "some come a moment later"
        browser.close()


def converted(page, wanted):
    """The graph as the frontend would queue it now. On another host than that of ``make setup``: without what its own version of a node has more."""
    found = {k: (n["class_type"], n["inputs"]) for k, n in page.evaluate("async () => (await app.graphToPrompt()).output").items()}
    if "COMFYUI_DIR" not in os.environ:
        return found
    return {k: (kind, {n: v for n, v in inputs.items() if n in wanted[k][1]} if k in wanted else inputs) for k, (kind, inputs) in found.items()}


def settled(page, wanted):
    """What the graph converts to once it does so twice in a row as wanted, or after three seconds: some widgets take their values a moment after it opened."""
    alike = 0
    for _ in range(30):
        page.wait_for_timeout(100)
        found = converted(page, wanted)
        alike = alike + 1 if found == wanted else 0
        if alike == 2:
            break
    return found


def errors(page):
    """What the page complained of since it was last asked."""
    said, page.errors[:] = page.errors[:], []
    return said


@pytest.mark.parametrize("name", NAMES)
def test_opens_and_converts_to_the_api_file(page, name, request):
    page.evaluate("graph => app.loadGraphData(graph)", json.loads((ROOT / "workflows" / f"{name}.json").read_text()))
    wanted = {k: (n["class_type"], n["inputs"]) for k, n in json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text()).items()}
    assert settled(page, wanted) == wanted
    assert errors(page) == []
    folder = request.config.getoption("--screenshots", default=None)
    if folder:
        page.keyboard.press("Escape")
        page.evaluate("app.canvas.ds.scale = 0.42; app.canvas.ds.offset = [40, 60]; app.graph.setDirtyCanvas(true, true)")
        page.wait_for_timeout(500)
        page.screenshot(path=f"{folder}/{name}.png")


@pytest.mark.parametrize("node", ["LoomUltraViCo", "LoomRIFLEx", "LoomSparseAttention", "LoomReport"])
def test_a_fresh_node_can_be_added(page, node):
    shown = page.evaluate("id => { app.graph.clear(); const n = LiteGraph.createNode(id); app.graph.add(n); return [n.title, (n.widgets || []).length, n.inputs.length] }", node)
    assert shown[0]
    assert shown[2] >= 1
    assert errors(page) == []

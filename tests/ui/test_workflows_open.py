"""The bundled workflows in the real frontend, in a headless Chromium: they open, and convert to exactly the API files."""

import json
import shutil

import pytest
from attention_loom.tools.headless import ROOT, Headless

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.server]
if CHROMIUM is None:
    pytestmark.append(pytest.mark.skip(reason="no Chromium on this machine; install one (Debian: apt-get install chromium) to run the browser tests"))

NAMES = sorted(p.stem for p in (ROOT / "workflows").glob("*.json"))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from playwright.sync_api import sync_playwright

    packs = {"toy-world": ROOT / "toyworld" / "comfy_node"}
    with Headless(tmp_path_factory.mktemp("comfy"), packs=packs) as host, sync_playwright() as play:
        for name, kind in (("toy_wan_t2v", "diffusion_models"), ("toy_umt5", "text_encoders"), ("toy_wan_vae", "vae")):
            host.put_model(kind, ROOT / "toyworld" / "checkpoints" / f"{name}.safetensors")
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1920, "height": 1080})
        tab.errors = []
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        # the page asks the vendor's servers for news; nothing outside this machine takes part in a test
        tab.route(lambda url: not url.startswith(host.url), lambda route: route.abort())
        tab.goto(host.url, wait_until="domcontentloaded", timeout=120_000)
        tab.wait_for_function("!!(window.app?.extensionManager && window.LiteGraph?.registered_node_types?.LoomReport)", timeout=150_000)
        yield tab
        browser.close()


@pytest.mark.parametrize("name", NAMES)
def test_opens_and_converts_to_the_api_file(page, name, request):
    page.errors.clear()
    page.evaluate("graph => app.loadGraphData(graph)", json.loads((ROOT / "workflows" / f"{name}.json").read_text()))
    page.wait_for_timeout(800)
    converted = page.evaluate("async () => (await app.graphToPrompt()).output")
    wanted = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    assert {k: (n["class_type"], n["inputs"]) for k, n in converted.items()} == {k: (n["class_type"], n["inputs"]) for k, n in wanted.items()}
    assert page.errors == []
    folder = request.config.getoption("--screenshots", default=None)
    if folder:
        page.keyboard.press("Escape")
        page.evaluate("app.canvas.ds.scale = 0.42; app.canvas.ds.offset = [40, 60]; app.graph.setDirtyCanvas(true, true)")
        page.wait_for_timeout(500)
        page.screenshot(path=f"{folder}/{name}.png")


@pytest.mark.parametrize("node", ["LoomUltraViCo", "LoomRIFLEx", "LoomSparseAttention", "LoomReport"])
def test_a_fresh_node_can_be_added(page, node):
    page.errors.clear()
    shown = page.evaluate("id => { app.graph.clear(); const n = LiteGraph.createNode(id); app.graph.add(n); return [n.title, (n.widgets || []).length, n.inputs.length] }", node)
    assert shown[0]
    assert shown[2] >= 1
    assert page.errors == []

"""A real ComfyUI, started as a process, driven through its HTTP and websocket API.

Used by the demo, the tests and the studies. Nothing of the host is imported here.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

ROOT = Path(__file__).resolve().parent.parent
"""The pack."""

FOLDERS = ("custom_nodes", "input", "output", "temp", "user/default", "models/diffusion_models", "models/vae", "models/text_encoders", "models/checkpoints", "models/loras")


def host_dir() -> Path:
    """The ComfyUI tree: COMFYUI_DIR or the one ``make setup`` made."""
    return Path(os.environ.get("COMFYUI_DIR") or ROOT / "build" / "host" / "ComfyUI").resolve()


class HostError(RuntimeError):
    """The host refused a prompt or failed while running it. ``details`` is what it said, as data."""

    def __init__(self, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.details = details


@dataclass
class Result:
    """One executed prompt: outputs per node id, as the host's history has them; seconds; cached node ids."""

    outputs: dict[str, Any]
    seconds: float
    cached: list[str] = field(default_factory=list)


class Headless:
    """A ComfyUI server with this pack in ``custom_nodes``. Use as a context manager.

    base: its base directory (models, output, ...), made if absent. packs: further folders linked into custom_nodes, by
    name. env: more environment variables, for instance TRITON_INTERPRET.
    """

    def __init__(self, base: Path, packs: dict[str, Path] | None = None, env: dict[str, str] | None = None, args: tuple[str, ...] = ()) -> None:
        self.base = Path(base).resolve()
        self.packs = {"attention-loom": ROOT} | (packs or {})
        self.env = env or {}
        self.args = args
        self.client = uuid.uuid4().hex
        self.process: subprocess.Popen[bytes] | None = None

    # --- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Headless:
        for folder in FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, target in self.packs.items():
            link = self.base / "custom_nodes" / name
            link.unlink(missing_ok=True)
            link.symlink_to(target, target_is_directory=True)
        settings = {"Comfy.TutorialCompleted": True, "Comfy.VueNodes.Enabled": False, "Comfy.Minimap.Visible": False}
        (self.base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings))
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = self.base / "server.log"
        host = host_dir()
        device = () if os.environ.get("LOOM_GPU") == "1" else ("--cpu",)
        command = [
            sys.executable, "main.py", *device, "--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base),
            "--database-url", f"sqlite:///{self.base / 'comfy.db'}", "--disable-api-nodes", "--disable-auto-launch", *self.args,
        ]  # fmt: skip
        env = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"} | self.env
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=host, stdout=log, stderr=subprocess.STDOUT, env=env)
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _wait(self, seconds: float = 180) -> None:
        end = time.time() + seconds
        while time.time() < end:
            if self.process is not None and self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.25)
        tail = self.log.read_text(errors="replace")[-3000:]
        self.__exit__()
        raise HostError(f"ComfyUI did not start; the end of its log:\n{tail}")

    # --- talk -------------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        """JSON of a GET request."""
        with urllib.request.urlopen(self.url + path, timeout=30) as reply:
            return json.load(reply)

    def post(self, path: str, data: Any) -> Any:
        """JSON of a POST request. Raises HostError with the host's own words on HTTP errors."""
        request = urllib.request.Request(self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                body = reply.read()
                return json.loads(body) if body.strip() else None
        except urllib.error.HTTPError as error:
            details = json.loads(error.read() or b"{}")
            raise HostError(_refusal(details), details) from None

    def run(self, prompt: dict[str, Any], progress: Callable[[str, int, int], None] | None = None, timeout: float = 900, entered: Callable[[str], None] | None = None) -> Result:
        """Queue an API-format graph and wait for its end. ``progress(node, value, maximum)`` follows the samplers, ``entered(node)``
        hears of each node as it begins.

        Raises HostError: refused (details: node_errors), failed (details: the execution_error message), interrupted.
        """
        begin = time.time()
        sock = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={self.client}", timeout=timeout)
        with closing(sock):
            number = self.post("/prompt", {"prompt": prompt, "client_id": self.client})["prompt_id"]
            cached: list[str] = []
            for kind, data in _messages(sock):
                if data.get("prompt_id") != number:
                    continue
                if kind == "progress" and progress is not None:
                    progress(str(data.get("node")), data["value"], data["max"])
                elif kind == "executing" and entered is not None and data["node"] is not None:
                    entered(str(data["node"]))
                elif kind == "execution_cached":
                    cached = data["nodes"]
                elif kind == "execution_success":
                    break
                elif kind == "execution_error":
                    raise HostError(f"{data['node_type']}: {data['exception_message'].strip()}", data)
                elif kind == "execution_interrupted":
                    raise HostError("the run was interrupted", data)
        for _ in range(100):  # the history is written a moment after the last message
            history = self.get(f"/history/{number}")
            if number in history:
                return Result(history[number]["outputs"], time.time() - begin, cached)
            time.sleep(0.05)
        raise HostError("the host ran the graph but never wrote its history")

    def interrupt(self) -> None:
        """Stop what runs."""
        self.post("/interrupt", {})

    def file(self, entry: dict[str, str]) -> Path:
        """Path of one output file as listed in a result ({"filename", "subfolder", "type"})."""
        return self.base / entry["type"] / entry["subfolder"] / entry["filename"]

    def put_model(self, kind: str, path: Path) -> str:
        """Link a model file into ``models/<kind>``; returns the name loaders know it by."""
        link = self.base / "models" / kind / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(path.resolve())
        except OSError:
            shutil.copy(path, link)
        return path.name


def _messages(sock: websocket.WebSocket) -> Iterator[tuple[str, dict[str, Any]]]:
    while True:
        raw = sock.recv()
        if isinstance(raw, str):  # previews come as bytes
            message = json.loads(raw)
            yield message["type"], message["data"]


def _refusal(details: dict[str, Any]) -> str:
    """One line out of the host's validation errors."""
    lines = [details.get("error", {}).get("message", "the host refused the request")]
    for node, errors in details.get("node_errors", {}).items():
        lines += [f"node {node} ({errors.get('class_type')}): {e['message']} {e.get('details', '')}".strip() for e in errors["errors"]]
    return "; ".join(lines)

"""A headless Chromium for tests: a page at any width, what it asked the network for, what its scripts would see.

Speaks the DevTools protocol over a socket of its own; nothing to install but the browser.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen


class Chromium:
    """One browser with one tab; use as a context manager."""

    def __init__(self) -> None:
        program = os.environ.get("CHROMIUM") or next(
            filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
        )
        assert program, "browser tests need Chromium (Debian: apt-get install chromium), or its path in CHROMIUM"
        self._home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--no-first-run",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._home.name}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self._socket = self._connect()
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def _connect(self) -> socket.socket:
        file = Path(self._home.name) / "DevToolsActivePort"
        for _ in range(600):
            if file.exists() and len(file.read_text().split()) == 2:
                break
            time.sleep(0.1)
        port = int(file.read_text().split()[0])
        for _ in range(600):  # the port may be told before the first tab is there
            with urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                tabs = [one for one in json.load(answer) if one["type"] == "page"]
            if tabs:
                break
            time.sleep(0.1)
        tab = tabs[0]
        path = tab["webSocketDebuggerUrl"].split(f":{port}", 1)[1]
        connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        key = base64.b64encode(os.urandom(16)).decode()
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        assert b" 101 " in head.split(b"\r\n")[0]
        return connection

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a DevTools method and return its result; events that arrive meanwhile are kept."""
        self._number += 1
        body = json.dumps({"id": self._number, "method": method, "params": parameters}).encode()
        length = len(body)
        head = bytes([0x81, 0x80 | (length if length < 126 else 126 if length < 65536 else 127)])
        head += b"" if length < 126 else struct.pack("!H" if length < 65536 else "!Q", length)
        mask = os.urandom(4)
        self._socket.sendall(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(body)))
        while True:
            message = self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            assert more, "the browser went away"
            data += more
        return data

    def _message(self) -> dict[str, Any]:
        text = b""
        while True:
            first, second = self._exactly(2)
            length = second & 0x7F
            if length > 125:
                length = struct.unpack("!H" if length == 126 else "!Q", self._exactly(2 if length == 126 else 8))[0]
            text += self._exactly(length)
            if first & 0x80:
                return json.loads(text)

    def open(self, path: Path, *, width: int, height: int = 900) -> None:
        """Show a local file at a viewport width, and wait until it is loaded."""
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        return self.send("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def requests(self) -> list[str]:
        """Everything the page asked for, the page itself included."""
        self.evaluate("1")
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        """What the browser wrote to its console: refused contents, broken markup."""
        self.evaluate("1")
        return [e["params"]["entry"]["text"] for e in self.events if e.get("method") == "Log.entryAdded"]

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def pdf(self) -> bytes:
        """Print the page."""
        return base64.b64decode(self.send("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])

    def close(self) -> None:
        """End the browser and remove its folder."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        self._home.cleanup()

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

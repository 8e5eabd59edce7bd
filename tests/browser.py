"""Chromium without a screen, driven over a pipe by the DevTools protocol."""

import json
import os
import shutil
import subprocess
from contextlib import contextmanager

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)


class Page:
    """A page of a browser, with the errors that it logged."""

    def __init__(self, source, target):
        self.source, self.target = source, target
        self.count, self.session, self.buffer = 0, None, b""
        self.errors = []
        page = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        """Run a command of the protocol and return its result."""
        self.count += 1
        number = self.count
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.target, json.dumps(message).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]

    def _read(self):
        while b"\0" not in self.buffer:
            part = os.read(self.source, 1 << 20)
            assert part, "the browser ended"
            self.buffer += part
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(message["params"]["exceptionDetails"])
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"])
            case "Runtime.consoleAPICalled" if message["params"]["type"] == "error":
                self.errors.append(message["params"]["args"])
        return message

    def run(self, script):
        """Return the value of JavaScript, after its promise."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, url, width=1280, dark=False):
        """Load a page in a window of `width` pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def wait(self, condition, seconds=60):
        """Wait until `condition` holds."""
        script = f"""new Promise((resolve, reject) => {{
            const end = performance.now() + {1000 * seconds};
            const poll = () => {{
                if ({condition}) resolve(true);
                else if (performance.now() > end) reject(new Error("not reached"));
                else setTimeout(poll, 20);
            }};
            poll();
        }})"""
        self.run(script)


@contextmanager
def browse(profile):
    """Yield a page of a new browser whose profile is the directory `profile`."""
    (child_in, target), (source, child_out) = os.pipe(), os.pipe()

    def arrange():
        # The protocol has the descriptors 3 and 4.
        read, write = os.dup(child_in), os.dup(child_out)
        os.dup2(read, 3)
        os.dup2(write, 4)

    command = [PROGRAM, *FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        command, preexec_fn=arrange, close_fds=False, stderr=subprocess.DEVNULL
    )
    os.close(child_in)
    os.close(child_out)
    try:
        yield Page(source, target)
    finally:
        process.kill()
        process.wait()
        os.close(source)
        os.close(target)

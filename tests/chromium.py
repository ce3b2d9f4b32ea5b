"""Controls a real Chromium without a screen, over its DevTools protocol."""

import base64
import contextlib
import json
import pathlib
import shutil
import subprocess
import time

from websockets.sync import client

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def path() -> str | None:
  """Returns the path of an installed Chromium, or None."""
  return next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
  """A tab of the browser. It sends real events of mouse and keys."""

  def __init__(self, socket) -> None:
    self._socket = socket
    self._number = 0
    self.problems: list[str] = []  # exceptions and errors in the console
    self.addresses: list[str] = []  # the addresses of all requests
    for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **parameters) -> dict:
    """Calls a method of the protocol and returns its result."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": parameters}
    self._socket.send(json.dumps(message))
    while True:
      found = json.loads(self._socket.recv(timeout=60))
      if found.get("id") == self._number:
        assert "error" not in found, (method, found["error"])
        return found["result"]
      self._note(found)

  def _note(self, event: dict) -> None:
    name, details = event.get("method"), event.get("params", {})
    if name == "Runtime.exceptionThrown":
      self.problems.append(str(details["exceptionDetails"]))
    elif name == "Log.entryAdded" and details["entry"]["level"] == "error":
      self.problems.append(str(details["entry"]))
    elif name == "Network.requestWillBeSent":
      self.addresses.append(details["request"]["url"])
    elif name == "Page.javascriptDialogOpening":
      self.problems.append(f"dialog: {details['message']}")

  def evaluate(self, expression: str):
    """Returns the value of an expression in JavaScript."""
    found = self.call(
      "Runtime.evaluate",
      expression=expression,
      returnByValue=True,
      awaitPromise=True,
    )
    assert "exceptionDetails" not in found, found["exceptionDetails"]
    return found["result"].get("value")

  def wait(self, expression: str, seconds: float = 60) -> None:
    """Waits until an expression is true."""
    end = time.monotonic() + seconds
    while not self.evaluate(expression):
      assert time.monotonic() < end, f"never true: {expression}"
      time.sleep(0.05)

  def open(self, address: str) -> None:
    """Goes to an address."""
    self.call("Page.navigate", url=address)
    self.wait(f"location.href.startsWith({json.dumps(address)})")
    self.wait("document.readyState === 'complete'")

  def size(self, width: int, height: int, phone: bool = False) -> None:
    """Sets the size of the window, in CSS pixels."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=2 if phone else 1,
      mobile=phone,
    )

  def _middle(self, element: str) -> tuple[float, float]:
    return tuple(
      self.evaluate(
        f"(() => {{ const e = {element};"
        "e.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const b = e.getBoundingClientRect();"
        "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
      )
    )

  def hover(self, element: str) -> None:
    """Moves the mouse to an element, given in JavaScript."""
    x, y = self._middle(element)
    self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

  def click(self, element: str) -> None:
    """Clicks on the middle of an element, given in JavaScript."""
    x, y = self._middle(element)
    at = {"x": x, "y": y, "button": "left", "clickCount": 1}
    self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    self.call("Input.dispatchMouseEvent", type="mousePressed", **at)
    self.call("Input.dispatchMouseEvent", type="mouseReleased", **at)

  def drop(self, element: str, files: list) -> None:
    """Drops files on an element, given in JavaScript."""
    x, y = self._middle(element)
    data = {"items": [], "files": list(map(str, files))}
    data["dragOperationsMask"] = 1
    for kind in ("dragEnter", "dragOver", "drop"):
      self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

  def write(self, text: str) -> None:
    """Types text into the element that has the focus."""
    self.call("Input.insertText", text=text)

  def press(self, key: str, code: int) -> None:
    """Presses a key, given by its name and number."""
    about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
    text = {"text": "\r"} if key == "Enter" else {}
    self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
    self.call("Input.dispatchKeyEvent", type="keyUp", **about)

  def screenshot(self, file, whole: bool = True) -> None:
    """Writes a PNG of the page, or of its part that the window shows."""
    found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
    pathlib.Path(file).write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def started(folder):
  """Starts a Chromium and yields its page.

  Args:
    folder: an empty folder for the browser's profile.
  """
  process = subprocess.Popen(
    [
      *(path(), "--headless", "--no-sandbox", "--disable-gpu"),
      *("--disable-quic", "--no-first-run", "--disable-sync"),
      *("--disable-background-networking", "--disable-component-update"),
      *("--disable-dev-shm-usage", "--hide-scrollbars"),
      f"--user-data-dir={folder}",
      *("--remote-debugging-port=0", "about:blank"),
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    address = _address(pathlib.Path(folder), process)
    with client.connect(address, max_size=None, proxy=None) as browser:
      send = {"id": 1, "method": "Target.getTargets"}
      browser.send(json.dumps(send))
      targets = json.loads(browser.recv())["result"]["targetInfos"]
    (target,) = (t["targetId"] for t in targets if t["type"] == "page")
    tab = f"{address.partition('/devtools')[0]}/devtools/page/{target}"
    with client.connect(tab, max_size=None, proxy=None) as socket:
      yield Page(socket)
  finally:
    process.terminate()
    process.wait()


def _address(folder: pathlib.Path, process) -> str:
  """Returns the address of the browser's socket, which is in its profile."""
  file = folder / "DevToolsActivePort"
  end = time.monotonic() + 60
  while time.monotonic() < end:
    assert process.poll() is None, "Chromium ended at once"
    if file.exists() and file.read_text().count("\n"):
      port, name = file.read_text().split()
      return f"ws://127.0.0.1:{port}{name}"
    time.sleep(0.05)
  raise AssertionError("Chromium opened no port")

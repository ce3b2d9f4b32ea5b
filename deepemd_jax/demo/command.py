"""The command `demo`, which opens a web page on this machine."""

import argparse
import os
import socket
import sys
import threading
import webbrowser
from typing import NoReturn

from deepemd_jax.errors import InputError
from deepemd_jax.inference import options as shared

HELP = "open a web page that classifies images dropped on it"
DESCRIPTION = """
Opens a web page on this machine that classifies images by a few examples of
each class, and shows the matched regions.

It listens on 127.0.0.1 only. To open it from another machine, forward the
port: ssh -L 7860:127.0.0.1:7860 THIS_MACHINE, and open http://127.0.0.1:7860
there.
"""
CLEANS_UP = False
HOST = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of the command."""
  shared.add_checkpoint(parser)
  parser.add_argument(
    "--port",
    type=int,
    default=7860,
    help="port to listen on; 0 selects any free port (default %(default)s)",
  )
  parser.add_argument(
    "--no-browser",
    dest="browser",
    action="store_false",
    help="print the address, and do not open a browser",
  )


# pyrefly: ignore[bad-return]: the server serves until the process ends
def run(options: argparse.Namespace) -> NoReturn:
  """Serves the page until the process ends.

  Raises:
    InputError: the port is not available, or there is no such checkpoint.
  """
  if not 0 <= options.port < 2**16:
    raise InputError(f"--port is {options.port}; use 0 to 65535")
  with _listen(options.port) as listening:
    from deepemd_jax.demo import server

    demo = server.Demo(options.checkpoint)
    address = f"http://{HOST}:{listening.getsockname()[1]}"
    print(f"the demo is at {address} (Ctrl-C ends it)", flush=True)
    if options.browser:
      _open(address)
    server.Server(demo, listening).serve_forever()


def _listen(port: int) -> socket.socket:
  try:
    return socket.create_server((HOST, port))
  except OSError as error:
    reason = os.strerror(error.errno or 0)
    raise InputError(
      f"cannot listen on port {port}: {reason}; choose another "
      "port with --port, or any free port with --port=0"
    ) from error


def _open(address: str) -> None:
  """Opens a browser if there is a display.

  Without a display, Python would start a browser that occupies the terminal.
  """
  screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
  if sys.platform in ("win32", "darwin") or screen:
    threading.Thread(target=webbrowser.open, args=[address]).start()

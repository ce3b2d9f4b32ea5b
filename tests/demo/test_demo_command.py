"""The command `demo` prints its address, and Ctrl-C ends it."""

import os
import re
import signal
import socket
import subprocess
import sys

import commands
import pytest
from forms import ask, until
from paths import ROOT

from deepemd_jax.demo import command


def test_the_command(run, tmp_path):
  """It prints its address, opens a browser, serves, and ends at Ctrl-C."""
  browser = tmp_path / "browser"
  browser.write_text(
    f"#!/bin/sh\ncd {tmp_path} && echo $1 > new && mv new asked\n"
  )
  browser.chmod(0o755)
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "deepemd_jax", "demo"),
      *(f"--checkpoint={run}", "--port=0"),
    ],
    cwd=ROOT,
    env=os.environ | {"DISPLAY": ":0", "BROWSER": f"{browser} %s"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    line = process.stdout.readline()
    (port,) = re.fullmatch(
      r"the demo is at http://127\.0\.0\.1:(\d+) \(Ctrl-C ends it\)\n", line
    ).groups()
    until((tmp_path / "asked").exists)
    assert b"<h1>DeepEMD" in ask(int(port), "GET", "/")[2]
    # The server listens on 127.0.0.1, and not on another address.
    with pytest.raises(OSError):
      socket.create_connection(("127.0.0.2", int(port)), 1).close()
    asked = (tmp_path / "asked").read_text()
    assert asked == f"http://127.0.0.1:{port}\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=10)
  finally:
    process.kill()
  assert process.returncode == 130 and out == ""
  assert errors.strip() == "interrupted; no incomplete file is left"


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--port=65536"], "--port is 65536; use 0 to 65535"),
    (["--port=x"], "invalid int value: 'x'"),
    (["--host=0.0.0.0"], "unrecognized arguments: --host=0.0.0.0"),
    (["--port=TAKEN"], "cannot listen on port .* in use; choose"),
    (["--port=0", "--checkpoint=absent"], "'absent' is not the workdir"),
  ],
)
def test_mistakes(arguments, message, capsys):
  with socket.create_server((command.HOST, 0)) as taken:
    port = str(taken.getsockname()[1])
    arguments = [a.replace("TAKEN", port) for a in arguments]
    result = commands.call(capsys, "demo", *arguments)
  commands.assert_refused(result, message)

"""Progress is a bar on a terminal, and a line from time to time in a log."""

import io

import pytest
from tqdm import std

from deepemd_jax.utils import progress, terminal


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  """A clock that only the test moves."""
  now = [100.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(std, "time", lambda: now[0])
  return now


def test_a_terminal_has_one_bar_that_is_drawn_over(clock):
  stream = Terminal()
  with progress.Progress(stream) as show:
    for done in range(0, 1001, 10):
      show("images", done, 1000, loss=1 / 3)
      clock[0] += 0.1
  text = stream.getvalue()
  assert text.count("\n") == 1 and text.endswith("\n")
  bars = text.strip().split("\r")
  assert bars[-1].startswith("images: 100%|##########| 1000/1000 [00:10<00:00")
  assert bars[-1].endswith("/s, loss 0.3333]")
  assert 30 < len(bars) < 70  # fewer than calls


def test_a_log_has_a_line_every_20_seconds(clock):
  stream = io.StringIO()
  with progress.Progress(stream) as show:
    for done in range(0, 10**9 + 1, 10**7):
      show("bytes", done, 10**9)
      clock[0] += 1.0
  lines = stream.getvalue().splitlines()
  assert len(lines) == 5
  assert lines[0] == "bytes: 200M/1.00G, 10.0MB/s, 01:20 left"


def test_the_rate_counts_this_run_only(clock):
  """A run that resumed at step 10 made ten steps in five seconds."""
  with progress.Progress(io.StringIO()) as show:
    assert show.text() == ""
    show("pretrain", 10, 40)
    clock[0] += 5
    show("pretrain", 20, 40, loss=1.5, accuracy=50.0)
    assert show.text() == (
      "pretrain: 20/40, 2.00/s, 00:10 left, loss 1.5, accuracy 50"
    )


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_line_stays_above_the_bar(kind, clock):
  stream = kind()
  with progress.Progress(stream) as show:
    show.line("before")
    show("images", 0, 10)
    clock[0] += 1
    show("images", 5, 10)
    show.line("validated")
    clock[0] += 1
    show("images", 10, 10)
  lines = [line.split("\r")[-1] for line in stream.getvalue().split("\n")]
  expected = ["before", "validated"]
  if kind is Terminal:
    assert lines[2].startswith("images: 100%")
  assert lines[:2] == expected


def test_another_name_begins_another_bar(clock):
  stream = Terminal()
  with progress.Progress(stream) as show:
    show("images", 3, 10)
    show("pictures", 0, 2)
  first, second, rest = stream.getvalue().split("\n")
  assert "images" in first and "pictures" in second and rest == ""
  assert "images" not in second


@pytest.mark.parametrize(("done", "total"), [(0, 0), (3, 0), (7, 5)])
def test_a_total_that_is_wrong_does_no_harm(done, total, clock):
  for stream in (Terminal(), io.StringIO()):
    with progress.Progress(stream) as show:
      show("images", done, total)
      clock[0] += 60
      show("images", done, total)
    assert "images" in stream.getvalue()


def test_a_silent_process_says_nothing(monkeypatch, capsys):
  monkeypatch.setattr(terminal, "_silent", False)
  terminal.note("one")
  terminal.silence()
  stream = Terminal()
  with progress.Progress(stream) as show:
    show("images", 1, 2)
    show.line("more")
  terminal.note("two")
  assert stream.getvalue() == "" and capsys.readouterr().err == "one\n"


def test_what_stays_is_written_once(clock):
  """This holds even if nothing was shown for a long time."""
  stream = io.StringIO()
  with progress.Progress(stream) as show:
    show("pretrain", 0, 4)
    clock[0] += 100
    show.stay("pretrain", 2, 4, loss=1.0)
  (line,) = stream.getvalue().splitlines()
  assert line.startswith("pretrain: 2/4") and line.endswith("loss 1")


def test_a_line_for_logs_is_not_written_on_a_terminal():
  for stream, expected in ((io.StringIO(), "validating\n"), (Terminal(), "")):
    progress.Progress(stream).log("validating")
    assert stream.getvalue() == expected

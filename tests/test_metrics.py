"""The metrics file is the truth, across restarts and torn lines."""

import io
import json

from deepemd_jax import metrics


def test_rows_and_events(tmp_path):
  with metrics.MetricLog(tmp_path, total_steps=4) as log:
    log.write(2, loss=1.5, accuracy=float("nan"))
    log.write(4, loss=1.0)
  rows = metrics.read(tmp_path / "metrics.jsonl")
  assert rows == [
    {"step": 2, "loss": 1.5, "accuracy": "nan"},
    {"step": 4, "loss": 1.0},
  ]
  assert list(tmp_path.glob("events.out.tfevents.*"))


def test_resuming_drops_what_will_be_written_again(tmp_path):
  path = tmp_path / "metrics.jsonl"
  rows = [json.dumps({"step": s, "loss": s / 2}) for s in (1, 2, 3)]
  path.write_text("\n".join(rows) + '\n{"step": 4, "lo')
  with metrics.MetricLog(tmp_path, total_steps=9, start_step=2) as log:
    log.write(3, loss=7.0)
  found = metrics.read(path)
  assert [row["loss"] for row in found] == [0.5, 1.0, 7.0]


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_log_gets_plain_lines_and_a_terminal_a_bar(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics, "_REFRESH", -1.0)
  for stream, terminal in ((io.StringIO(), False), (Terminal(), True)):
    with metrics.MetricLog(
      tmp_path, total_steps=4, name="pretrain", stream=stream
    ) as log:
      log.progress(1, loss=2.0)
      log.write(2, loss=1.5)
    shown = stream.getvalue()
    assert "pretrain 2/4 loss 1.5" in shown
    assert "steps/s" in shown and "left" in shown
    assert ("\r" in shown) == terminal
    assert ("[#####" in shown) == terminal
    assert shown.endswith("\n")

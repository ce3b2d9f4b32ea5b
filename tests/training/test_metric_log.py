"""The metrics file is right after restarts and with incomplete lines."""

import io
import json
import math
import tempfile

import hypothesis
import hypothesis.strategies as st
from tensorboardX.proto import event_pb2

from deepemd_jax.evaluation import metric_rows
from deepemd_jax.training import metric_log


def events(directory):
  """Yields the events of the only TensorBoard file in `directory`.

  A record is its length in 8 bytes, 4 of checksum, the event, 4 of checksum.
  """
  (path,) = directory.glob("events.out.tfevents.*")
  content = path.read_bytes()
  while content:
    end = 12 + int.from_bytes(content[:8], "little")
    yield event_pb2.Event.FromString(content[12:end])
    content = content[end + 4 :]


def test_rows_and_events(tmp_path):
  with metric_log.MetricLog(tmp_path / "deep" / "er", total_steps=4) as log:
    log.write(2, loss=1.5, accuracy=float("nan"))
    log.write(4, loss=-math.inf)
  directory = tmp_path / "deep" / "er"
  assert metric_rows.read(directory / "metrics.jsonl") == [
    {"step": 2, "loss": 1.5, "accuracy": "nan"},
    {"step": 4, "loss": "-inf"},
  ]
  points = {
    (value.tag, event.step): value.simple_value
    for event in events(directory)
    for value in event.summary.value
  }
  assert math.isnan(points.pop(("accuracy", 2)))
  assert points == {("loss", 2): 1.5, ("loss", 4): -math.inf}


def test_nothing_there(tmp_path):
  assert metric_rows.read(tmp_path / "metrics.jsonl") == []


@hypothesis.settings(max_examples=15, deadline=None, derandomize=True)
@hypothesis.given(
  steps=st.integers(0, 6), start=st.integers(0, 8), lost=st.integers(0, 60)
)
def test_a_run_torn_anywhere_and_resumed_has_each_row_once(steps, start, lost):
  with tempfile.TemporaryDirectory() as directory:
    path = f"{directory}/metrics.jsonl"
    rows = [{"step": step, "loss": step / 2} for step in range(1, steps + 1)]
    whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
    torn = whole[: max(len(whole) - lost, 0)]
    with open(path, "wb") as file:
      file.write(torn)
    # These rows are still in the file. A missing line end loses no row.
    left = [r for r in rows if json.dumps(r).encode() in torn.split(b"\n")]
    with metric_log.MetricLog(
      directory, total_steps=9, start_step=start
    ) as log:
      log.write(start + 1, loss=7.0)
    kept = [row for row in left if row["step"] <= start]
    assert metric_rows.read(path) == [*kept, {"step": start + 1, "loss": 7.0}]


def test_tensorboard_is_told_what_will_come_again(tmp_path):
  with metric_log.MetricLog(tmp_path, total_steps=9, start_step=3) as log:
    log.write(4, loss=1.0)
  starts = [e for e in events(tmp_path) if e.HasField("session_log")]
  assert [event.step for event in starts] == [4]
  assert starts[0].session_log.status == event_pb2.SessionLog.START


def test_a_row_is_a_line_for_people_too(tmp_path):
  """`utils.progress` tests the bars and times."""
  stream = io.StringIO()
  with metric_log.MetricLog(
    tmp_path, total_steps=40, start_step=10, name="pretrain", stream=stream
  ) as log:
    log.progress(15, loss=2.0)
    log.write(20, loss=1.5, accuracy=12.3456789)
  (line,) = stream.getvalue().splitlines()
  assert line.startswith("pretrain: 20/40, ")
  assert line.endswith("left, loss 1.5, accuracy 12.35")


def test_a_log_that_nobody_reads_says_nothing(tmp_path, capsys):
  with metric_log.MetricLog(None, total_steps=4) as log:
    log.progress(1, loss=1.0)
    log.write(2, loss=1.0)
  assert capsys.readouterr() == ("", "")

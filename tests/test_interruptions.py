"""After an interruption or damage, the same command resumes a run.

The final numbers are those of an uninterrupted run.
"""

import contextlib
import json
import resource
import shutil
import signal
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures_runs import call, command, results, rows, run
from paths import ROOT

from deepemd_jax.checkpoints.manager import Checkpoints
from deepemd_jax.errors import InputError
from deepemd_jax.models import backbone
from deepemd_jax.training import loop
from deepemd_jax.training.state import make_step, new_state

NO_PICTURES = {"evaluate.pictures": 0}


@contextlib.contextmanager
def started(arguments, errors):
  """Runs a command during the block; its stderr goes to `errors`."""
  with errors.open("w") as file:
    process = subprocess.Popen(
      arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=file
    )
  try:
    yield process
  finally:
    process.kill()
    process.wait()


def send(process, number, when) -> int:
  """Sends a signal as soon as `when()` is true; returns the exit code."""
  while process.poll() is None and not when():
    time.sleep(0.01)
  assert process.poll() is None, "it has ended too early"
  process.send_signal(number)
  return process.wait()


def last_weights(workdir):
  """Returns all parameters and statistics after pre-training, as bytes."""
  fields = json.loads((workdir / "config.json").read_text())
  settings = dict(fields["model"])
  like = backbone.create(settings.pop("backbone"), **settings).abstract()
  place = workdir / "pretrain" / "checkpoints"
  with Checkpoints(place, read_only=True) as saved:
    model = saved.restore(saved.latest(), model=like).model
  return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model)]


def test_killed_then_terminated_a_run_ends_as_if_nothing_had_happened(
  finished, images, tmp_path
):
  """SIGKILL comes while the first checkpoint is written.

  SIGTERM comes as soon as training resumes. The run prints one line and ends
  with code 143.
  """
  workdir, errors = tmp_path / "run", tmp_path / "stderr"
  stage = {"stages": ("pretrain",)}
  arguments = command(workdir, images, stage)
  with started(arguments, errors) as process:
    log = workdir / "pretrain" / "metrics.jsonl"
    code = send(
      process, signal.SIGKILL, lambda: log.exists() and log.read_bytes()
    )
    assert code == -signal.SIGKILL, errors.read_text()
  with started(arguments, errors) as process:
    began = "pretrain: step 0 of 16"
    code = send(process, signal.SIGTERM, lambda: began in errors.read_text())
    assert code == 143, errors.read_text()
  line = errors.read_text().splitlines()[-1]
  assert line.startswith("pretrain stopped at step ")
  assert "the same command continues the run" in line
  run(workdir, images, stage)
  names = ("step", "val_accuracy", "val_prototype")
  ends = [rows(x, "pretrain")[-1] for x in (workdir, finished)]
  assert [ends[0][n] for n in names] == [ends[1][n] for n in names]
  assert last_weights(workdir) == last_weights(finished)


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
  finished, copy, images, capfd
):
  """The damage is like that of a failing disk after step 5.

  The final weights are those of an undamaged run.
  """
  steps = copy / "metatrain" / "checkpoints"
  shutil.rmtree(steps / "6")
  shutil.copytree(steps / "3", steps / "5")
  for path in (steps / "5" / "train").rglob("d/*"):  # orbax reads some
    path.write_bytes(path.read_bytes()[:-9])
  run(copy, images, {"stages": ("metatrain",)})
  errors = capfd.readouterr().err
  assert f"{steps / '5'} is damaged" in errors
  assert f"kept as {steps / 'damaged.5'}" in errors
  assert rows(copy, "metatrain") == rows(finished, "metatrain")


def fit(directory):
  """Trains a small problem for six steps; a checkpoint has 400 kB."""

  def loss(params, extra, batch_stats, batch):
    return jnp.square(params["w"] - batch).sum(), (batch_stats, {})

  rng = np.random.default_rng(0)
  optimizer = optax.sgd(0.1)
  start = rng.standard_normal(100_000, np.float32)
  plan = loop.Plan(
    directory=directory,
    step=make_step(loss, optimizer),
    batch=lambda number: np.full(1, number, np.float32),
    total_steps=6,
    validate_every=2,
    validate=lambda variables: {"accuracy": float(variables["params"]["w"][0])},
  )
  stats = {"unused": jnp.zeros(())}
  variables = {"params": {"w": jnp.asarray(start)}, "batch_stats": stats}
  loop.fit(plan, new_state(variables, optimizer))


@contextlib.contextmanager
def full_disk():
  """Limits files to 64 kB, to imitate a full disk.

  orbax gets the same error at the same place as with a full disk.
  """
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_saving_is_one_line_and_nothing_is_lost(tmp_path):
  fit(tmp_path / "untouched")
  with full_disk(), pytest.raises(InputError) as error:
    fit(tmp_path / "full")
  assert str(error.value).startswith("a checkpoint in ")
  assert "make room; the same command then continues" in str(error.value)
  assert "\n" not in str(error.value)
  fit(tmp_path / "full")
  last, expected = (
    rows(tmp_path, name)[-1]["val_accuracy"] for name in ("full", "untouched")
  )
  assert last == expected


@pytest.mark.soak
def test_the_command_on_a_full_disk(finished, copy, images):
  shutil.rmtree(copy / "metatrain")
  limited = ["bash", "-c", 'ulimit -f 64; exec "$@"', "-"]
  ended = call([*limited, *command(copy, images)], code=2)
  last = ended.stderr.splitlines()[-1]
  assert last.startswith("deepemd_jax: error: a checkpoint in"), ended.stderr
  assert "make room; the same command then continues" in last
  assert "Traceback" not in ended.stderr
  call(command(copy, images, NO_PICTURES))
  assert results(copy) == results(finished)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(11))
def test_killed_five_times_anywhere(seed, finished, images, tmp_path):
  """The kills come anywhere between the first import and the last figure."""
  rng = np.random.default_rng(seed)
  arguments = command(tmp_path / "run", images)
  errors = tmp_path / "stderr"
  for _ in range(5):
    with started(arguments, errors) as process:
      try:
        code = process.wait(timeout=rng.uniform(2.0, 20.0))
        assert code == 0, errors.read_text()[-3000:]
      except subprocess.TimeoutExpired:
        pass
  call(arguments)
  assert results(tmp_path / "run") == results(finished)

"""Whatever ends or damages a run, the same command goes on, and the numbers at
the end are those of a run that nothing happened to."""

import contextlib
import json
import resource
import shutil
import signal
import subprocess
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures_runs import call, command, run
from paths import ROOT
from test_end_to_end import results

from deepemd_jax.errors import InputError
from deepemd_jax.training import loop
from deepemd_jax.training.state import make_step, new_state

NO_PICTURES = {"evaluate.pictures": 0}


@contextlib.contextmanager
def started(arguments):
  """A command that runs, and does not outlive the block."""
  process = subprocess.Popen(
    arguments,
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    yield process
  finally:
    process.kill()
    process.wait()
    process.stderr.close()


def rows(workdir, stage="metatrain"):
  path = workdir / stage / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def send(process, number, when) -> str:
  """Sends a signal once `when()` is true; what the process wrote on stderr."""
  while process.poll() is None and not when():
    time.sleep(0.01)
  assert process.poll() is None, process.communicate()[1]
  process.send_signal(number)
  return process.communicate()[1]


def test_terminated_and_killed_a_run_ends_as_if_nothing_had_happened(
  finished, copy, images
):
  """TERM as soon as training has begun: one line, code 143, then KILL."""
  shutil.rmtree(copy / "metatrain")
  arguments = command(copy, images)
  with started(arguments) as process:
    errors = send(process, signal.SIGTERM, lambda: rows(copy))
    assert process.returncode == 143, errors
  last = errors.splitlines()[-1]
  assert last.startswith("metatrain stopped at step ")
  assert "the same command goes on" in last
  before = len(rows(copy))
  with started(arguments) as process:
    send(process, signal.SIGKILL, lambda: len(rows(copy)) > before)
    assert process.returncode == -signal.SIGKILL
  run(copy, images, NO_PICTURES)
  assert results(copy) == results(finished)
  names = ("step", "val_accuracy", "val_prototype")
  last, expected = (
    {n: rows(x)[-1][n] for n in names} for x in (copy, finished)
  )
  assert last == expected


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
  finished, copy, images, capfd
):
  """A run that was killed after its second validation, say, by a failing disk:
  the end is as if nothing had happened."""
  steps = copy / "metatrain" / "checkpoints"
  shutil.rmtree(steps / "6")
  for path in (steps / "3" / "train").rglob("d/*"):  # orbax reads some
    path.write_bytes(path.read_bytes()[:-9])
  run(copy, images, {"stages": ("metatrain",)})
  errors = capfd.readouterr().err
  assert f"{steps / '3'} is damaged" in errors
  assert f"kept as {steps / 'damaged.3'}" in errors
  assert rows(copy) == rows(finished)


def fit(directory, learning_rate=0.1):
  """Six steps of a small problem, with 400 kB in a checkpoint."""

  def loss(params, extra, batch_stats, batch):
    return jnp.square(params["w"] - batch).sum(), (batch_stats, {})

  rng = np.random.default_rng(0)
  optimizer = optax.sgd(learning_rate)
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


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  with pytest.raises(InputError, match="the loss is .* learning rate"):
    fit(tmp_path / "wild", learning_rate=1e30)


@contextlib.contextmanager
def full_disk():
  """Files may not grow beyond 64 kB, which stands for a disk without room:
  orbax gets the same error at the same place."""
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
  assert "make room, and the same command goes on" in str(error.value)
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
  assert "make room, and the same command goes on" in last
  assert "Traceback" not in ended.stderr
  call(command(copy, images, NO_PICTURES))
  assert results(copy) == results(finished)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(11))
def test_killed_five_times_anywhere(seed, finished, images, tmp_path):
  """Between the first import and the last figure."""
  rng = np.random.default_rng(seed)
  arguments = command(tmp_path / "run", images)
  for _ in range(5):
    with started(arguments) as process:
      try:
        _, errors = process.communicate(timeout=rng.uniform(2.0, 20.0))
        assert process.returncode == 0, errors[-3000:]
      except subprocess.TimeoutExpired:
        pass
  call(arguments)
  assert results(tmp_path / "run") == results(finished)

"""Tests of what all launch scripts refuse, and what a dry run prints."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from launchers import ARGUMENTS, LAUNCH, call, calls

SCRIPTS = ["local.sh", "slurm.sbatch", "tpu_vm.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck(script):
  shellcheck = shutil.which(
    "shellcheck", path=pathlib.Path(sys.executable).parent
  )
  done = subprocess.run(
    [shellcheck, "--severity=style", LAUNCH / script],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout


MISTAKES = {
  "no number": ("local.sh", {}, [], "number of processes"),
  "not a number": ("local.sh", {}, ["two"], "'two'"),
  "none": ("local.sh", {}, ["0"], "'0'"),
  "negative": ("local.sh", {}, ["-2"], "'-2'"),
  "flags first": ("local.sh", {}, ["--config=x", "2"], "'--config=x'"),
  "grace": ("local.sh", {"DEEPEMD_GRACE": "1m"}, ["2"], "'1m'"),
  "few GPUs": ("local.sh", {"CUDA_VISIBLE_DEVICES": "0"}, ["2"], "1 GPU"),
  "no job": ("slurm.sbatch", {}, ["--config=x"], "sbatch launch/slurm.sbatch"),
  "limit": ("slurm.sbatch", {"MAX_RESTARTS": "x"}, [], "MAX_RESTARTS"),
  "no TPU": ("tpu_vm.sh", {"ZONE": "z"}, ["--config=x"], "TPU is not set"),
  "no zone": ("tpu_vm.sh", {"TPU": "t"}, ["--config=x"], "ZONE is not set"),
  "no arguments": ("tpu_vm.sh", {"TPU": "t", "ZONE": "z"}, [], "--config"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name, place, tmp_path):
  environment, make = place
  for program in ("python", "srun", "gcloud"):
    make(program, "")
  script, variables, arguments, word = MISTAKES[name]
  done = call({**environment, **variables}, script, *arguments)
  assert done.returncode == 2
  assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
  assert done.stderr.startswith(f"{script}: error: ") and word in done.stderr
  assert not list(tmp_path.glob("[psg]*.calls"))


def without_port(call):
  return [re.sub(r"(=127.0.0.1:)[0-9]{5}$", r"\1PORT", part) for part in call]


@pytest.mark.parametrize(
  "script, first, program, variables",
  [
    ("local.sh", ["2"], "python", {}),
    ("local.sh", ["2"], "python", {"CUDA_VISIBLE_DEVICES": "3,GPU-5,7"}),
    ("slurm.sbatch", [], "srun", {"SLURM_JOB_ID": "7"}),
    ("tpu_vm.sh", [], "gcloud", {"TPU": "t", "ZONE": "z", "PROJECT": "p"}),
    ("tpu_vm.sh", ["--stop"], "gcloud", {"TPU": "t", "ZONE": "z"}),
  ],
)
def test_a_dry_run_prints_what_would_run_and_runs_nothing(
  script, first, program, variables, place, tmp_path
):
  environment, make = place
  make(program, 'echo "$CUDA_VISIBLE_DEVICES"')
  make("git", "")
  environment = {**environment, **variables, "TMPDIR": str(tmp_path)}
  arguments = [*first, *ARGUMENTS]
  dry = call(environment, script, "--dry-run", *arguments)
  assert dry.returncode == 0 and dry.stderr == ""
  assert not list(tmp_path.glob(f"[{program[0]}]*.calls"))
  done = call(environment, script, *arguments, cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  really = sorted(map(without_port, calls(tmp_path, program)))
  if script != "tpu_vm.sh":  # there they are inside of --command
    assert all(call[-4:] == ARGUMENTS for call in really)
  (tmp_path / f"{program}.calls").unlink()
  # In a shell, the printed lines make the same calls in the same environment.
  pasted = subprocess.run(
    ["bash", "-e"],
    input=dry.stdout,
    env=environment,
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  again = sorted(map(without_port, calls(tmp_path, program)))
  assert again == really or script == "slurm.sbatch"
  printed = re.sub(r"^\[1\] ", "", done.stdout, flags=re.M)
  assert sorted(pasted.stdout.split()) == sorted(printed.split())
  if script == "slurm.sbatch":  # runs in this folder or in that of the script
    assert [c[-5:] for c in again] == [c[-5:] for c in really]
  for line in dry.stdout.splitlines():
    assert shlex.split(line)[0] in ("env", "git", program)

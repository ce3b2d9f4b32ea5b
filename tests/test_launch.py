"""launch/: what the scripts call, how they end, and that nothing stays behind.

Programs with the names of the real ones, on PATH, note how they were called and
do as they are told.
"""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from paths import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = ["local.sh", "slurm.sbatch", "tpu_vm.sh"]
ARGUMENTS = ["--config=configs/cub.py:5shot", "--workdir=/a b", "it's", "$x;*"]


@pytest.fixture
def place(tmp_path):
  """(environment with a folder in front of PATH, function that fills it)."""
  folder = tmp_path / "bin"
  folder.mkdir()

  def make(name, body):
    program = folder / name
    calls = shlex.quote(str(tmp_path / f"{name}.calls"))
    program.write_text(
      f"#!{shutil.which('bash')}\n"
      # One write, because several may note at once; bash writes each line.
      f"printf '%s\\0' \"$@\" $'\\1' >>{calls}\n{body}\n"
    )
    program.chmod(0o755)

  kept = {
    k: os.environ[k] for k in ("HOME", "LANG", "TMPDIR") if k in os.environ
  }
  make("nvidia-smi", "exit 9")
  return {**kept, "PATH": f"{folder}:{os.environ['PATH']}"}, make


def calls(tmp_path, name):
  """The argument lists that a program got, in order."""
  text = (tmp_path / f"{name}.calls").read_text()
  return [each.split("\0")[:-1] for each in text.split("\1\0")[:-1]]


def call(environment, script, *arguments, **options):
  return subprocess.run(
    ["bash", LAUNCH / script, *arguments],
    env=environment,
    capture_output=True,
    text=True,
    timeout=60,
    **options,
  )


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
  if script != "tpu_vm.sh":  # there they are inside the words of --command
    assert all(call[-4:] == ARGUMENTS for call in really)
  (tmp_path / f"{program}.calls").unlink()
  # Pasted into a shell: the same calls, with the same environment.
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
  if script == "slurm.sbatch":  # run here, or in the folder of the script
    assert [c[-5:] for c in again] == [c[-5:] for c in really]
  for line in dry.stdout.splitlines():
    assert shlex.split(line)[0] in ("env", "git", program)


# --- local.sh ---------------------------------------------------------------


# Its process i runs what the variable Pi says.
OBEY = """
for a; do case $a in --process_id=*) eval "eval \\"\\$P${a#*=}\\"";; esac; done
"""


def local(place, count, *, grace="1", **variables):
  environment, make = place
  make("python", OBEY)
  environment = {**environment, "DEEPEMD_GRACE": grace, **variables}
  return call(environment, "local.sh", str(count), *ARGUMENTS)


def alive(marker):
  """Processes, other than zombies, with `marker` in their command line."""
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      if marker.encode() in (folder / "cmdline").read_bytes():
        found.append(folder.name)
    except OSError:
      pass  # it has just ended
  return found


def gone(marker, within=10.0):
  end = time.monotonic() + within
  while alive(marker) and time.monotonic() < end:
    time.sleep(0.05)
  return not alive(marker)


@pytest.fixture
def marker():
  """An argument of `sleep` that no other process of this machine has."""
  return f"61.{time.time_ns()}"


def test_each_process_gets_its_number_and_the_same_coordinator(place, tmp_path):
  done = local(place, 3)
  assert done.returncode == 0 and done.stderr == ""
  found = sorted(calls(tmp_path, "python"), key=lambda call: call[5])
  for i, arguments in enumerate(found):
    assert arguments[:3] == ["-u", "-m", "deepemd_jax.main"]
    assert arguments[4:6] == ["--num_processes=3", f"--process_id={i}"]
    assert arguments[6:] == ARGUMENTS
  assert len({call[3] for call in found}) == 1
  assert re.fullmatch(r"--coordinator=127\.0\.0\.1:\d{5}", found[0][3])


def test_lines_of_others_than_the_first_have_their_number(place):
  done = local(place, 2, P0="echo a; echo b >&2", P1="echo c; echo d >&2")
  assert sorted(done.stdout.split("\n")) == ["", "[1] c", "[1] d", "a"]
  assert done.stderr == "b\n"


def test_one_gpu_each_if_there_are_enough(place):
  environment, make = place
  make("nvidia-smi", "printf '0\\n1\\n2\\n'")
  show = "echo $CUDA_VISIBLE_DEVICES"
  two = local(place, 2, P0=show, P1=show)
  assert sorted(two.stdout.split("\n")) == ["", "0", "[1] 1"]
  chosen = local(place, 2, P0=show, P1=show, CUDA_VISIBLE_DEVICES="5,GPU-a")
  assert sorted(chosen.stdout.split("\n")) == ["", "5", "[1] GPU-a"]
  four = local(place, 4)
  assert four.returncode == 2 and "3 GPU(s)" in four.stderr
  assert local(place, 4, JAX_PLATFORMS="cpu").returncode == 0


def test_the_first_bad_code_counts(place):
  slow = "sleep 0.7; exit 75"
  assert local(place, 3, P0=slow, P1="exit 2", P2=slow).returncode == 2
  assert local(place, 3, P0="exit 75", P1="exit 2", P2=slow).returncode == 2
  assert local(place, 2, P0="sleep 0.7; exit 2", P1="exit 75").returncode == 75
  assert local(place, 2, P1="kill -KILL $$").returncode == 137


@pytest.mark.parametrize("stuck", ["exec sleep {}", "kill -STOP $$ # {}"])
def test_a_process_that_is_stuck_or_stopped_is_killed(place, stuck, marker):
  """And what it had started; TERM it ignores."""
  stuck = f"trap '' TERM; sleep {marker} & {stuck.format(marker)}"
  start = time.monotonic()
  done = local(place, 3, P0=stuck, P1="exit 7", P2=stuck)
  assert done.returncode == 7
  assert done.stderr == "local.sh: killed after 1 s: process 0 2\n"
  assert time.monotonic() - start < 20
  assert gone(marker)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_goes_to_all_and_they_may_save(place, number, marker):
  environment, make = place
  make("python", OBEY)
  name = number.name.removeprefix("SIG")
  body = f"trap 'echo saved; exit 143' {name}; echo ready; "
  body += f"while :; do sleep 0.05; done # {marker}"
  process = subprocess.Popen(
    ["bash", LAUNCH / "local.sh", "2"],
    env={**environment, "P0": body, "P1": body},
    stdout=subprocess.PIPE,
    text=True,
  )
  lines = [process.stdout.readline() for _ in range(2)]
  assert sorted(lines) == ["[1] ready\n", "ready\n"]
  process.send_signal(number)
  rest, _ = process.communicate(timeout=20)
  assert sorted(rest.split("\n")) == ["", "[1] saved", "saved"]
  assert process.returncode == 143


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_is_killed_itself(place, number, marker):
  environment, make = place
  make("python", OBEY)
  deaf = f"trap '' TERM; sleep {marker} & echo ready; exec sleep {marker}"
  process = subprocess.Popen(
    ["bash", LAUNCH / "local.sh", "2"],
    env={**environment, "DEEPEMD_GRACE": "0", "P0": deaf, "P1": deaf},
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
  )
  for _ in range(2):
    process.stdout.readline()
  while len(alive(marker)) < 4:
    time.sleep(0.05)
  process.send_signal(number)
  process.communicate(timeout=20)
  assert process.returncode in (137, -9)
  assert gone(marker)


# --- slurm.sbatch -----------------------------------------------------------


def header():
  lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
  found = [x.removeprefix("#SBATCH --") for x in lines if x.startswith("#SBA")]
  # sbatch reads them up to the first command only.
  assert all(x.startswith("#") for x in lines[: len(found) + 1])
  return dict(x.partition("=")[::2] for x in found)


def test_header():
  fields = header()
  assert "requeue" in fields
  assert fields["signal"] == "TERM@180"  # to the tasks: no B:
  assert fields["open-mode"] == "append"  # a restart keeps the log
  assert fields["ntasks-per-node"] == fields["gpus-per-node"]
  assert not {"gpus-per-task", "gpu-bind"} & set(fields)


# Runs its tasks here, and like srun has the code of a signal win.
SRUN = """
shift
"$@" &
if [[ $SECOND ]]; then
  wait $!
  exit $SECOND
fi
wait $!
"""


@pytest.mark.parametrize(
  "body, variables, code, requeued",
  [
    ("exit 0", {}, 0, False),
    ("exit 1", {}, 1, False),
    ("exit 2", {}, 2, False),
    ("exit 130", {}, 130, False),
    ("exit 143", {}, 0, True),
    ("exit 75", {}, 0, True),
    ("kill -ABRT $$", {}, 0, True),
    ("exit 2", {"SECOND": "143"}, 2, False),  # the others were killed
    ("exit 75", {"SECOND": "137"}, 0, True),
    ("exit 143", {"SLURM_RESTART_COUNT": "19"}, 0, True),
    ("exit 143", {"SLURM_RESTART_COUNT": "20"}, 143, False),
    ("exit 75", {"SLURM_RESTART_COUNT": "2", "MAX_RESTARTS": "2"}, 75, False),
  ],
)
def test_what_puts_a_job_back_into_the_queue(
  body, variables, code, requeued, place, tmp_path
):
  environment, make = place
  make("python", body)
  make("scontrol", "")
  make("srun", SRUN)
  environment = {
    **environment,
    **variables,
    "SLURM_JOB_ID": "7",
    "SLURM_SUBMIT_DIR": str(tmp_path),
  }
  done = call(environment, "slurm.sbatch", *ARGUMENTS)
  assert done.returncode == code, done.stderr
  (srun,) = calls(tmp_path, "srun")
  assert srun[0] == "--kill-on-bad-exit=1"
  (python,) = calls(tmp_path, "python")
  assert python[:4] == ["-u", "-m", "deepemd_jax.main", "--distributed=on"]
  assert python[4:] == ARGUMENTS
  if requeued:
    assert calls(tmp_path, "scontrol") == [["requeue", "7"]]
  else:
    assert not (tmp_path / "scontrol.calls").exists()
  assert not list(tmp_path.glob(".deepemd*"))


def test_term_to_all_of_a_task_lets_the_program_save(place, tmp_path):
  """As srun sends it: to the program and to the shell around it."""
  environment, make = place
  make("scontrol", "")
  make("python", "trap 'sleep 0.3; exit 143' TERM; kill -TERM 0; sleep 9")
  make("srun", 'shift; exec setsid --wait "$@"')
  environment = {**environment, "SLURM_JOB_ID": "7"}
  done = call(environment, "slurm.sbatch", cwd=tmp_path)
  assert "code 143; back into the queue" in done.stderr
  assert calls(tmp_path, "scontrol") == [["requeue", "7"]]


# --- tpu_vm.sh --------------------------------------------------------------


def tpu(place, tmp_path, body, **variables):
  """(what it did, the commands that the machines got)."""
  environment, make = place
  make("gcloud", f"case $* in *deepemd_jax.main*) {body};; esac")
  make("git", "")
  wanted = {"TPU": "t", "ZONE": "z", "RESTART_PAUSE": "0", **variables}
  done = call({**environment, **wanted}, "tpu_vm.sh", *ARGUMENTS)
  found = calls(tmp_path, "gcloud")
  for i, arguments in enumerate(found):
    verb, what = ("ssh", "t") if i else ("scp", "t:deepemd_jax.tar")
    assert arguments[:4] == ["compute", "tpus", "tpu-vm", verb]
    assert what in arguments
    assert {"--zone=z", "--worker=all"} <= set(arguments)
  commands = [call[-1].removeprefix("--command=") for call in found[1:]]
  assert '".[train,tpu]"' in commands.pop(0)
  return done, commands


def test_arguments_reach_the_machines_as_given(place, tmp_path):
  _, (command,) = tpu(place, tmp_path, "exit 0")
  words = shlex.split(command.partition("deepemd_jax.main ")[2])
  assert words == ["--distributed=on", *ARGUMENTS]


@pytest.mark.parametrize(
  "body, runs, code",
  [
    ("exit 0", 1, 0),
    ("exit 2", 1, 2),
    ("exit 1", 1, 1),
    ("exit 75", 3, 75),
    ("exit 143", 3, 143),
    ("exit 255", 3, 255),
    ("[[ -e again ]] && exit; touch again; exit 75", 2, 0),
  ],
)
def test_what_starts_a_slice_again(
  body, runs, code, place, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  done, commands = tpu(place, tmp_path, body, MAX_RESTARTS="2")
  assert (done.returncode, len(commands)) == (code, runs)
  assert done.stderr.count("; again, ") == runs - 1
  assert ("not started again" in done.stderr) == (runs == 3)


def test_a_signal_stops_the_run_on_the_machines(place, tmp_path):
  environment, make = place
  make("git", "")
  body = 'case $* in *pkill*) touch "$HERE/stop";; *distributed*) echo ready; '
  body += 'until [[ -e "$HERE/stop" ]]; do sleep 0.05; done; exit 143;; esac'
  make("gcloud", body)
  process = subprocess.Popen(
    [LAUNCH / "tpu_vm.sh", "--config=x"],
    env={**environment, "TPU": "t", "ZONE": "z", "HERE": str(tmp_path)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "ready\n"
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=20) == 143
  assert "pkill -TERM" in calls(tmp_path, "gcloud")[-1][-1]


# --- gke.yaml ---------------------------------------------------------------


def test_jobset():
  jobset = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
  assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert jobset["kind"] == "JobSet"
  policy = jobset["spec"]["failurePolicy"]
  assert policy["maxRestarts"] > 0
  (rule,) = policy["rules"]
  assert rule["action"] == "FailJobSet"
  assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  (replicated,) = jobset["spec"]["replicatedJobs"]
  job = replicated["template"]["spec"]
  assert job["completions"] == job["parallelism"]
  assert job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
  pod = job["template"]["spec"]
  assert pod["restartPolicy"] == "Never"
  assert pod["terminationGracePeriodSeconds"] >= 180
  (container,) = pod["containers"]
  (mistake,) = job["podFailurePolicy"]["rules"]
  assert mistake == {
    "action": "FailJob",
    "onExitCodes": {
      "containerName": container["name"],
      "operator": "In",
      "values": [2],
    },
  }
  # 4x4 chips, of which each machine has as many as the container asks for.
  selector = pod["nodeSelector"]
  sides = map(int, selector["cloud.google.com/gke-tpu-topology"].split("x"))
  chips = container["resources"]["limits"]["google.com/tpu"]
  assert next(sides) * next(sides) == job["completions"] * chips
  assert container["command"] == ["python", "-u", "-m", "deepemd_jax.main"]
  (folder,) = [mount["mountPath"] for mount in container["volumeMounts"]]
  names = {flag.partition("=")[0]: flag for flag in container["args"]}
  assert "=" + folder in names["--workdir"]
  config = names["--config"].partition("=")[2].partition(":")[0]
  assert (ROOT / config).is_file()
  # What the comments say about GPUs names the same pod.
  text = (LAUNCH / "gke.yaml").read_text()
  name, part = jobset["metadata"]["name"], replicated["name"]
  assert f"--coordinator={name}-{part}-0-0.{name}:" in text

"""The scripts for clusters in launch/ restart a run when they should."""

import shlex
import signal
import subprocess

import pytest
import yaml
from launchers import ARGUMENTS, LAUNCH, call, calls
from paths import ROOT

# --- slurm.sbatch -----------------------------------------------------------


def header():
  lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
  found = [x.removeprefix("#SBATCH --") for x in lines if x.startswith("#SBA")]
  # sbatch only reads them up to the first command.
  assert all(x.startswith("#") for x in lines[: len(found) + 1])
  return dict(x.partition("=")[::2] for x in found)


def test_header():
  fields = header()
  assert "requeue" in fields
  assert fields["signal"] == "TERM@180"  # to the tasks, as it has no B:
  assert fields["open-mode"] == "append"  # a restart appends to the log
  assert fields["ntasks-per-node"] == fields["gpus-per-node"]
  assert not {"gpus-per-task", "gpu-bind"} & set(fields)


# Runs its tasks in this process. Like srun, it prefers the code of a signal.
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
    ("exit 2", {"SECOND": "143"}, 2, False),  # the other tasks were killed
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
  """srun sends SIGTERM to the program and to the shell around it."""
  environment, make = place
  make("scontrol", "")
  make("python", "trap 'sleep 0.3; exit 143' TERM; kill -TERM 0; sleep 9")
  make("srun", 'shift; exec setsid --wait "$@"')
  environment = {**environment, "SLURM_JOB_ID": "7"}
  done = call(environment, "slurm.sbatch", cwd=tmp_path)
  assert "code 143; the job returns to the queue" in done.stderr
  assert calls(tmp_path, "scontrol") == [["requeue", "7"]]


# --- tpu_vm.sh --------------------------------------------------------------


def tpu(place, tmp_path, body, **variables):
  """Runs tpu_vm.sh; returns its result and the commands of the machines."""
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
  assert done.stderr.count("; starting again, ") == runs - 1
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
  process.communicate(timeout=20)
  assert process.returncode == 143
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
  # There are 4x4 chips. Each machine has as many as the container requests.
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
  # The comments about GPUs name the same pod.
  text = (LAUNCH / "gke.yaml").read_text()
  name, part = jobset["metadata"]["name"], replicated["name"]
  assert f"--coordinator={name}-{part}-0-0.{name}:" in text

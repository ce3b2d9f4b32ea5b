#!/usr/bin/env bash
# Starts one run on all machines of a Cloud TPU slice.
#
#   export TPU=my-v5e-16 ZONE=us-west4-a        # PROJECT: if not gcloud's default
#   launch/tpu_vm.sh [--dry-run] ARGS...        copies the committed files,
#                                              installs the package, and runs
#   launch/tpu_vm.sh [--dry-run] --stop         saves and ends the run
#   launch/tpu_vm.sh --config=configs/cub.py --workdir=/shared/runs/cub
#
# ARGS are the arguments of `python -m deepemd_jax.main`. --workdir must be a
# folder that all machines share, such as a Filestore share that is mounted on
# each machine. JAX finds the other machines by itself. Ctrl-C does the same as
# --stop. Run `ssh-add ~/.ssh/google_compute_engine` first, because gcloud
# connects to all machines at the same time.
#
# After 143, after 75, after a signal has ended the run, and after the connection
# was lost (255), the run starts again after RESTART_PAUSE (10) seconds, and
# resumes. This happens at most MAX_RESTARTS (20) times. After a mistake (2) the
# run does not start again. If the slice was preempted, create it again first.
set -euo pipefail

refuse() {
  echo "tpu_vm.sh: error: $1" >&2
  exit 2
}

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=yes
  shift
fi
[[ ${TPU-} ]] || refuse "TPU is not set; export TPU=NAME, see \
gcloud compute tpus tpu-vm list"
[[ ${ZONE-} ]] || refuse "ZONE is not set; export ZONE=us-west4-a, say"
(($#)) || refuse "no arguments; give --config=... and --workdir=..., or --stop"
max=${MAX_RESTARTS:-20}
[[ $max =~ ^[0-9]{1,4}$ ]] || refuse "MAX_RESTARTS is '$max'; use a number"

where=("--zone=$ZONE")
if [[ ${PROJECT-} ]]; then where+=("--project=$PROJECT"); fi
where+=(--worker=all)

run() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
on_all() {
  run gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" "--command=$1"
}

if [[ $1 == --stop ]]; then
  # The brackets keep the pattern from matching the shell that runs pkill.
  on_all 'pkill -TERM -f "[d]eepemd_jax.main" || echo "nothing is running"'
  exit
fi

# The images of TPU machines have Python 3.10. uv finds or downloads a newer one.
archive=${TMPDIR:-/tmp}/deepemd_jax.tar
run git -C "$(cd "$(dirname "$0")/.." && pwd)" archive --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$TPU:deepemd_jax.tar" \
  "${where[@]}"
install='mkdir -p deepemd_jax && cd deepemd_jax && tar -xf ../deepemd_jax.tar'
install+=' && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install -q --user uv'
install+=' && { [ -e .venv ] || python3 -m uv venv -q --python ">=3.11" .venv; }'
install+=' && python3 -m uv pip install -q --python .venv/bin/python'
install+=' -c requirements.txt -e ".[train,tpu]"'
on_all "$install"

program='cd deepemd_jax; exec .venv/bin/python -u -m deepemd_jax.main'
program+=" --distributed=on$(printf ' %q' "$@")"
stopped=
trap 'stopped=yes; "$0" --stop || :' INT TERM HUP
for ((try = 0; ; try++)); do
  code=0
  on_all "$program" & # in the background, so that a signal is handled at once
  wait $! || code=$?
  if [[ $stopped ]]; then wait $! || code=$?; fi
  # gcloud returns the code of a machine whose code was not 0.
  if ((code != 143 && code != 75 && code <= 128)) || [[ $stopped ]]; then
    exit "$code"
  fi
  if ((try >= max)); then
    echo "tpu_vm.sh: code $code after $max restarts; not started again" >&2
    exit "$code"
  fi
  echo "tpu_vm.sh: code $code; starting again, $((max - try)) tries left" >&2
  run sleep "${RESTART_PAUSE:-10}"
done

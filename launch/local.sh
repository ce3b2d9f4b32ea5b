#!/usr/bin/env bash
# Starts one run as N processes on this machine.
#
#   launch/local.sh [--dry-run] N ARGS...
#   launch/local.sh 2 --config=configs/quickstart.py --workdir=runs/two
#
# ARGS are the arguments of `python -m deepemd_jax.main`. If the machine has
# GPUs, each process gets one of them. CUDA_VISIBLE_DEVICES says which GPUs may
# be used. With JAX_PLATFORMS=cpu no GPU is used. You do not need this script
# for a single process, which uses all devices by itself.
#
# SIGTERM and SIGINT are passed on to all processes. When one process ends with
# a code other than 0, the others end by themselves, or are killed after
# DEEPEMD_GRACE seconds (90). The exit code is the first one that was not 0. If
# it is 143 or 75, give the same command again. To use another interpreter than
# `python`, set PYTHON. The script needs bash 4.4.
set -euo pipefail

refuse() {
  echo "local.sh: error: $1" >&2
  exit 2
}

dry_run=
if [[ ${1-} == --dry-run ]]; then
  dry_run=yes
  shift
fi
(($#)) || refuse "no number of processes; use local.sh 2 --config=..."
count=$1
[[ $count =~ ^[1-9][0-9]{0,2}$ ]] ||
  refuse "the number of processes is '$count'; use 1 to 999"
shift
grace=${DEEPEMD_GRACE:-90}
[[ $grace =~ ^[0-9]{1,5}$ ]] || refuse "DEEPEMD_GRACE is '$grace'; use seconds"

gpus=()
if [[ ${JAX_PLATFORMS-} == cpu ]]; then
  :
elif [[ ${CUDA_VISIBLE_DEVICES-} ]]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
elif found=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)
then
  mapfile -t gpus <<<"$found"
fi
((${#gpus[@]} == 0 || ${#gpus[@]} >= count)) || refuse \
  "$count processes, but ${#gpus[@]} GPU(s); use fewer, or JAX_PLATFORMS=cpu"

# These ports are below those that systems assign automatically.
port=$((20000 + RANDOM % 12000))
while (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  port=$((20000 + RANDOM % 12000))
done

# Sets `command` to the command of process $1. The other arguments are ARGS.
command_of() {
  local number=$1
  command=()
  if ((${#gpus[@]})); then
    command=(env "CUDA_VISIBLE_DEVICES=${gpus[number]}")
  fi
  command+=("${PYTHON:-python}" -u -m deepemd_jax.main)
  command+=("--coordinator=127.0.0.1:$port" "--num_processes=$count")
  command+=("--process_id=$number" "${@:2}")
}

if [[ $dry_run ]]; then
  for ((i = 0; i < count; i++)); do
    command_of "$i" "$@"
    printf '%q ' "${command[@]}"
    echo
  done
  exit 0
fi

# Sends signal $1 to the processes or -groups in the other arguments. Some of
# them may have ended.
signal() {
  local id
  for id in "${@:2}"; do kill -s "$1" -- "$id" 2>/dev/null || :; done
}

# Reads the ids of the processes, and then "end". If "end" never comes, the main
# script was killed, and the guard ends the processes. In both cases it also
# kills everything that the processes have started.
guard() {
  trap '' INT TERM HUP
  local ids=() id limit
  while read -r id && [[ $id != end ]]; do ids+=("$id"); done
  if [[ $id != end ]]; then
    signal TERM "${ids[@]}"
    limit=$((SECONDS + grace))
    for id in "${ids[@]}"; do
      while kill -0 "$id" && ((SECONDS < limit)); do sleep 0.2; done
    done
  fi
  signal KILL "${ids[@]/#/-}"
}

running=()
prefixing=()
code=0
stopped= # by a signal
waiting= # signals that have not been passed on
deadline=
# Signals are passed on in the loop below, because a process that has just
# started may not be in `running` yet.
trap 'stopped=yes; waiting+=" TERM"' TERM HUP
trap 'stopped=yes; waiting+=" INT"' INT

set -m # each process gets a group of its own, and does not ignore SIGINT
exec 3> >(guard >/dev/null 2>&1)
guard=$!
for ((i = 0; i < count && ! ${#stopped}; i++)); do
  command_of "$i" "$@"
  if ((i == 0)); then
    exec {out}>&1 {err}>&2
  else
    # sed ignores signals, so that it prints the last lines of the process. It
    # ends when its input ends.
    exec {out}> >(trap '' INT TERM HUP && exec sed -u "s/^/[$i] /" 3>&-)
    prefixing+=($!)
    exec {err}>&"$out"
  fi
  "${command[@]}" </dev/null >&"$out" 2>&"$err" 3>&- {out}>&- {err}>&- &
  running[i]=$!
  exec {out}>&- {err}>&-
  echo "${running[i]}" >&3
done
set +m

exec {say}>&2 2>/dev/null # hides bash's messages about killed processes
while ((${#running[@]})); do
  sleep 0.2
  passing=$waiting
  for name in $passing; do signal "$name" "${running[@]}"; done
  waiting=${waiting#"$passing"} # another signal may have arrived meanwhile
  bad=0
  for i in "${!running[@]}"; do
    if kill -0 "${running[i]}"; then continue; fi
    ended=0
    wait "${running[i]}" || ended=$?
    unset "running[i]"
    # If several end at once, the smallest code counts: 2, not the others' 75.
    if ((ended && (bad == 0 || ended < bad))); then bad=$ended; fi
  done
  if ((code == 0)); then code=$bad; fi
  if ((code || ${#stopped})); then : "${deadline:=$((SECONDS + grace))}"; fi
  if ((${#running[@]} && ${#deadline} && SECONDS > deadline)); then
    echo "local.sh: killed after $grace s: process ${!running[*]}" >&"$say"
    signal KILL "${running[@]/#/-}" # this also ends a stopped process
  fi
done
echo end >&3
exec 3>&-
wait "$guard" "${prefixing[@]}" || :
exit "$code"

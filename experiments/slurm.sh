#!/usr/bin/env bash
#SBATCH --job-name=ldmjax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# One experiment on several GPUs, a process for each; it saves two minutes before the time limit, and goes on in the next turn.
# Submit it from the repository's root: sbatch [OPTIONS] experiments/slurm.sh NAME [FLAGS], where OPTIONS replace those above.
# Ask for GPUs per node, not per task: JAX wants each task to see all of its node, and takes the one with its SLURM_LOCALID.
set -uo pipefail
name=${1:?"the name of an experiment is missing; python -m experiments lists them"}
workdir=${SCRATCH:-$PWD/results}/ldmjax/$name
flags=()
for flag in "${@:2}"; do
  # A later turn goes on with what the first one began.
  [[ $flag == --overwrite* && ${SLURM_RESTART_COUNT:-0} -gt 0 ]] || flags+=("$flag")
done
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" "${PYTHON:-.venv/bin/python}" -m "experiments.$name" --workdir="$workdir" "${flags[@]}"
status=$?
# 143: stopped by SIGTERM, and saved. After scancel or a preemption the job is no longer running: SLURM decides what follows.
if ((status == 143)) && [[ $(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

#!/usr/bin/env bash
# Trains on several nodes under Slurm and resumes after the time limit. From the root of the checkout, with the
# environment activated:
#
#   sbatch --nodes=4 docker/slurm.sh experiment=mixer_l16_imagenet21k
#
# Options given to sbatch replace those below. One task is one process is one GPU: --ntasks-per-node and
# --gpus-per-node are the same number. Do not use --gpus-per-task: process i of a node takes GPU i of the node.
#
#SBATCH --job-name=mixer
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
#
# --signal: 120 s before the time limit every process gets SIGUSR1 (not this shell: that would be B:USR1@120). The run
#   ends its step, saves and exits 143, and the job is queued again below; it resumes from last.ckpt. Make it longer
#   if a step and a checkpoint together take more than a minute.
# --requeue: after a preemption or the failure of a node Slurm queues the job again by itself.
# --open-mode: the log of a job that is started again is continued, not emptied.
# `scancel` ends this shell before it can queue anything, so a cancelled job stays cancelled.
set -euo pipefail

if [[ ! -f train.py ]]; then
    echo "no train.py in $PWD: submit from the root of the checkout" >&2
    exit 2
fi

# SLURM_JOB_NODELIST and SLURM_JOB_ID come from sbatch.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR="${hosts[0]}"
export MASTER_PORT="$((15000 + SLURM_JOB_ID % 10000))"  # two jobs that share a node meet at different ports
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # since Slurm 22.05 srun does not inherit it from sbatch

# A run that is asked to stop exits 143 on all processes, some before the first has written the checkpoint. With
# --kill-on-bad-exit=1 (a default on some clusters) the earliest of them would have Slurm kill that one. With 0 a
# process that fails has the others end by themselves within a minute; --wait is for one that cannot.
code=0
srun --kill-on-bad-exit=0 --wait=300 python train.py trainer=ddp "$@" || code=$?

if [[ "$code" == 143 ]]; then
    scontrol requeue "$SLURM_JOB_ID" || echo "not queued again: submit the same command once more" >&2
fi
exit "$code"

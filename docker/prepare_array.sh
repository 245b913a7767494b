#!/usr/bin/env bash
# Prepares a data set by an array of Slurm jobs, each a part of it, and merges them. From the root of the checkout, with
# the environment activated:
#
#   parts=$(sbatch --parsable --array=1-64 docker/prepare_array.sh data=imagenet21k variant=fall11 \
#       source=/archives/fall11_whole.tar output=/data/in21k short_side=500)
#   sbatch --dependency=afterok:"$parts" docker/prepare_array.sh <the same arguments> part=merge
#
# Options given to sbatch replace those below.
#
#SBATCH --job-name=mixer-prepare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.log
#
# --array: counts from 1, and its number of jobs is the number of parts; 1-64%8 runs eight at a time. To prepare two of 64
#   again: PARTS=64 sbatch --array=3,17 docker/prepare_array.sh <the same arguments>
# --signal: 120 s before the time limit the job gets SIGTERM (this shell is replaced by the program, hence B:). It saves
#   and exits 143; submit the same command again, and each part goes on, or says that it is finished.
# --dependency=afterok: the merge starts when all parts are finished. It checks that by itself, too.
set -euo pipefail

if [[ ! -f train.py ]]; then
    echo "no train.py in $PWD: submit from the root of the checkout" >&2
    exit 2
fi

part=()
if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    part=("part=$SLURM_ARRAY_TASK_ID/${PARTS:-$SLURM_ARRAY_TASK_COUNT}")
fi
exec python -m mixer_lightning prepare "threads=${SLURM_CPUS_PER_TASK:-1}" "$@" "${part[@]}"

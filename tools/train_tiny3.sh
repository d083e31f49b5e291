#!/usr/bin/env bash
# Training of the built-in Qwen3-VL in pieces, in order. It begins with what a Qwen3-VL can take over from the
# built-in Qwen2.5-VL. The shipped weights were made by these pieces one after the other on a shared machine
# (docs/log.md), so this script has not been run as a whole, and the rate of the second `vision` was 1.5e-3 in its
# first ten minutes. The pieces add up to about 85 minutes on two cores. To resume an interrupted run, start again at
# its piece: every piece of `train_tiny.py` continues from the stored state.
#
#     tools/train_tiny3.sh STATE_DIR
set -euo pipefail
state=${1:?give a folder for the states}
here=$(dirname "$0")
python=${PYTHON:-.venv/bin/python}
# See train_tiny.sh.
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 OMP_NUM_THREADS=1

two() { "$python" -m torch.distributed.run --nproc-per-node 2 "$here/train_tiny.py" "$@" --family qwen3_vl --threads 1; }

mkdir -p "$state"
[ -f "$state/begin.pt" ] || "$python" "$here/tiny_transfer.py" --state "$state/begin.pt"
# The blocks of the tower were trained one by one: now the whole tower, towards the features of the old one.
two vision --state "$state/vision-1.pt" --begin-with "$state/begin.pt" --teacher model/tiny \
    --minutes 15 --total 15 --batch 32 --lr 1.5e-3 --seed 11
# The decoder learns the other rotary layout and the norms of queries and keys.
two joint --state "$state/joint-1.pt" --begin-with "$state/begin.pt" "$state/vision-1.pt" \
    --minutes 12 --batch 8 --looks 0.25 --questions 8 --lr 1e-3 --seed 21
# Only now the tower learns small glyphs, towards the code.
two vision --state "$state/vision-2.pt" --begin-with "$state/joint-1.pt" \
    --minutes 29 --total 29 --batch 32 --lr 2e-3 --seed 31
two joint --state "$state/joint-2.pt" --begin-with "$state/joint-1.pt" "$state/vision-2.pt" \
    --minutes 17 --total 17 --batch 8 --images 24 --looks 0.25 --questions 8 --lr 8e-4 --seed 41
"$python" "$here/train_tiny.py" export --family qwen3_vl --state "$state/joint-2.pt" --out model/tiny3

#!/usr/bin/env bash
# Training of the built-in Qwen3-VL in pieces, in order. It begins with what a Qwen3-VL can take over from the
# built-in Qwen2.5-VL; from scratch it would take about four times as long (docs/log.md). The pieces add up to about
# 75 minutes on two cores. To resume an interrupted run, start again at its piece: every piece of `train_tiny.py`
# continues from the stored state.
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
# The blocks of the tower were trained one by one: now the whole tower, on the features of the old one.
two vision --state "$state/vision.pt" --begin-with "$state/begin.pt" --teacher model/tiny \
    --minutes 15 --total 15 --batch 32 --lr 1.5e-3 --seed 11
two joint --state "$state/joint.pt" --begin-with "$state/begin.pt" "$state/vision.pt" \
    --minutes 50 --total 50 --batch 8 --looks 0.25 --questions 8 --lr 1e-3 --seed 21
"$python" "$here/train_tiny.py" export --family qwen3_vl --state "$state/joint.pt" --out model/tiny3

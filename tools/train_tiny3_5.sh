#!/usr/bin/env bash
# Training of the built-in Qwen3.5 in pieces, in order. It begins with what a Qwen3.5 can take over from the built-in
# Qwen3-VL. The shipped weights were made by these pieces on a shared machine (docs/log.md); the script has not been
# run as a whole. To resume an interrupted run, start again at its piece: every piece of `train_tiny.py` continues from
# the stored state.
#
#     tools/train_tiny3_5.sh STATE_DIR
set -euo pipefail
state=${1:?give a folder for the states}
here=$(dirname "$0")
python=${PYTHON:-.venv/bin/python}
# See train_tiny.sh.
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 OMP_NUM_THREADS=1

two() {
    "$python" -m torch.distributed.run --nproc-per-node 2 "$here/train_tiny.py" "$@" \
        --family qwen3_5 --threads 1 --tokenizer "$state/tokenizer"
}

mkdir -p "$state"
[ -f "$state/tokenizer/tokenizer.json" ] || "$python" "$here/tiny_tokenizer.py" "$state/tokenizer" --thinking
# Every attention is trained on its own towards the one that it replaces.
[ -f "$state/begin.pt" ] ||
    "$python" "$here/transfer_hybrid.py" --state "$state/begin.pt" --minutes 8 --lr 8e-3 --batch 6
# The decoder learns to reason; the tower stays as it is. Later pieces have more questions with options. The first two
# had other derivations of strings among options and other drills (docs/log.md).
decoder() { two joint --state "$state/joint.pt" --frozen-tower --batch 8 --questions 8 --lr 1.5e-3 "$@"; }
decoder --begin-with "$state/begin.pt" --minutes 18 --total 47 --looks 0.15 --drills 0.02 --seed 51
decoder --minutes 14 --total 47 --looks 0.15 --drills 0.05 --closed 1.25 --seed 52
decoder --minutes 16 --total 50 --looks 0.1 --drills 0.05 --closed 1.6 --seed 53
decoder --minutes 10 --total 58 --looks 0.05 --drills 0.3 --closed 1.8 --seed 54
# The module for multi-token prediction learns the answers of the finished model.
two draft --state "$state/draft.pt" --begin-with "$state/joint.pt" \
    --minutes 7 --total 7 --batch 8 --questions 8 --looks 0 --drills 0 --lr 4e-3 --warm-up 20 --seed 61
"$python" "$here/train_tiny.py" export --family qwen3_5 --state "$state/draft.pt" --tokenizer "$state/tokenizer" \
    --out model/tiny3.5

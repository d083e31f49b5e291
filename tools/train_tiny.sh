#!/usr/bin/env bash
# Training of the built-in model in pieces, in order. The shipped weights had additional experiments
# (docs/log.md), and their first hour sampled scenes by kind instead of by skill, so this script has not
# been run as a whole. The pieces add up to about three hours on two cores. To resume an interrupted
# run, start again at its piece: every piece continues from the stored state.
#
#     tools/train_tiny.sh STATE_DIR
set -euo pipefail
state=${1:?give a folder for the states}
here=$(dirname "$0")
python=${PYTHON:-.venv/bin/python}
# The allocator keeps memory, because varying shapes cause page faults. One thread per process, because
# several thread pools compete for the cores.
export MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 OMP_NUM_THREADS=1

one() { "$python" "$here/train_tiny.py" "$@" --threads 1; }
two() { "$python" -m torch.distributed.run --nproc-per-node 2 "$here/train_tiny.py" joint \
    --state "$state/joint.pt" --begin-with "$state/vision.pt" "$state/decoder.pt" --threads 1 "$@"; }

mkdir -p "$state"
[ -f model/tiny/tokenizer.json ] || "$python" "$here/tiny_tokenizer.py" model/tiny
one vision --state "$state/vision.pt" --minutes 42 --total 42 --batch 64 &
vision=$!
one drill --state "$state/decoder.pt" --minutes 2.5 --batch 64
wait "$vision"
# Looking drills, one group of skills after the other: each is learned within a minute or two.
two --minutes 2 --looks 1 --focus colour_of shape_of --seed 1
two --minutes 4 --looks 1 --focus read number ink sign line --seed 2
two --minutes 4 --looks 1 --focus value formula bar_value tallest shortest bar_count --seed 3
two --minutes 3 --looks 1 --seed 4
two --minutes 4 --looks 1 --focus direction where beside count largest inside --seed 5
# Whole questions, then with a decaying learning rate.
two --minutes 25 --looks 0.25 --questions 8 --lr 1.6e-3 --seed 6
two --minutes 8 --looks 0.5 --questions 8 --lr 1.3e-3 --seed 7
two --minutes 6 --looks 0.4 --questions 8 --lr 1.3e-3 --seed 8 \
    --focus quality same_colour next_colour count
two --minutes 60 --total 116 --looks 0.25 --questions 8 --lr 1.3e-3 --seed 9
one export --state "$state/joint.pt" --out model/tiny

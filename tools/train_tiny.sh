#!/usr/bin/env bash
# The pieces in which the built-in model is trained, in order, without the detours that docs/log.md
# tells of; the shipped weights took those too, so this script has not been run as a whole. The
# pieces add up to about two hours on two cores. A stopped run is taken up by hand at its piece:
# every piece goes on from the state that it finds.
#
#     tools/train_tiny.sh STATE_DIR
set -euo pipefail
state=${1:?give a folder for the states}
here=$(dirname "$0")
python=${PYTHON:-.venv/bin/python}
# Kept memory and explicit threads: varying shapes cost page faults, two pools fight for the cores.
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
# Looking, one kind of thing after the other: each jumps within a minute or two.
two --minutes 1.5 --drills 0.05 --looks 1 --scenes shapes pair --skills colour_of shape_of --seed 1
two --minutes 2.5 --drills 0.05 --looks 1 --scenes text signs lines pair \
    --skills read number ink sign line colour_of shape_of --seed 2
two --minutes 2.5 --drills 0.05 --looks 1 --scenes text signs lines form formula chart pair \
    --skills read number ink sign line colour_of shape_of value formula bar_value tallest shortest \
    bar_count --seed 3
two --minutes 3 --drills 0.05 --looks 1 --seed 4
two --minutes 2 --drills 0.05 --looks 1 --scenes shapes pair odd row frame album signs text \
    --skills direction where beside count count_shape count_colour next_colour odd_colour \
    odd_shape inside same_colour nth_colour nth_shape nth_read which_image which_colour_image \
    sign ink read number --seed 6
# Whole questions, then the same with a falling rate.
two --minutes 5 --drills 0.04 --looks 0.3 --questions 8 --closed 0.9 --seed 7
two --minutes 60 --total 80 --drills 0.03 --looks 0.2 --questions 8 --seed 21
one export --state "$state/joint.pt" --out model/tiny

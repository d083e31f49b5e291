#!/usr/bin/env bash
# From a folder of photos with questions to a checked, quantized model, and more questions later.
#
#     examples/own_photos.sh FOLDER [MODEL]
#
# FOLDER gets everything; MODEL is a checkpoint folder or hub id (default: a copy of the built-in
# `tiny`). The photos are drawings here; put your own files in place of step 1.
set -euo pipefail
work=${1:?usage: own_photos.sh FOLDER [MODEL]}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$work"
cd "$work"
model=${2:-my-model}
if [ "$model" = my-model ] && [ ! -d my-model ]; then
    python -c "import shutil; from vlpress.model.resolve import find_local_model
shutil.copytree(find_local_model('tiny'), 'my-model')"
fi

# 1. 200 images, and a table with a row per question: image, question, options, answer, category.
python "$here/draw_photos.py" . "${PHOTOS:-200}"

# 2. Which images calibrate the quantization, and which are asked about; no image is in both.
vlpress split photos.csv --calib "${CALIB:-64}" -o split

# 3. Quantize, evaluate both models on the same questions, compare.
run() {
    vlpress run "$model" -o out --recipe w4a16 --calib split/calib.jsonl \
        --calib-samples "${CALIB:-64}" --bench photos=split/eval.csv
}
run

# 4. More questions: append rows, and give the same command. Only the new ones are asked.
python "$here/draw_photos.py" . "${MORE:-100}" --first 1000
python - <<'APPEND'
import csv
rows = list(csv.reader(open("more.csv", newline="")))[1:]
with open("split/eval.csv", "a", newline="") as file:
    csv.writer(file, lineterminator="\n").writerows([f"../{image}", *rest] for image, *rest in rows)
APPEND
run

# 5. The checkpoint is an ordinary one: vlpress answers with it, and so does transformers.
question="What does the image contain?"
vlpress generate out/checkpoint --image photos/1000.png "$question"
echo
if python -c "import torchvision" 2> /dev/null; then
    python "$here/ask_transformers.py" out/checkpoint photos/1000.png "$question"
else
    echo "for an answer by transformers: pip install torchvision, then"
    echo "python $here/ask_transformers.py $PWD/out/checkpoint $PWD/photos/1000.png '$question'"
fi
echo "report: $PWD/out/report/report.html"

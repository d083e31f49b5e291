"""Ask a checkpoint one question about an image, with transformers alone.

    python examples/ask_transformers.py CHECKPOINT IMAGE QUESTION

needs torchvision, and compressed-tensors for a checkpoint in that format.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

from transformers import AutoModelForImageTextToText, AutoProcessor

checkpoint, image, question = sys.argv[1:]
if find_spec("torchvision") is None:
    sys.exit("the processors of transformers need torchvision: pip install torchvision")
processor = AutoProcessor.from_pretrained(checkpoint)
model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto")
content = [{"type": "image", "path": image}, {"type": "text", "text": question}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
answer = model.generate(**inputs, max_new_tokens=32, do_sample=False)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

"""Short programs that answer one question with a checkpoint, one per engine.

`docs/use-the-checkpoint.md` shows them, the model card shows those whose engine loads the
checkpoint, and `make interop` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PATH, IMAGE = "CHECKPOINT", "photo.jpg"
QUESTION = "What does the sign say?"

_CHAT = """processor = AutoProcessor.from_pretrained("CHECKPOINT")
content = [
    {"type": "image", "image": Image.open("photo.jpg")},
    {"type": "text", "text": "QUESTION"},
]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
)
tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
answer = tokens[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True))
"""

TRANSFORMERS = (
    """from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("CHECKPOINT", dtype="auto")
"""
    + _CHAT
)

VLLM = """from PIL import Image
from vllm import LLM, SamplingParams

llm = LLM("CHECKPOINT", max_model_len=4096, limit_mm_per_prompt={"image": 1, "video": 0})
content = [
    {"type": "image_pil", "image_pil": Image.open("photo.jpg")},
    {"type": "text", "text": "QUESTION"},
]
sampling = SamplingParams(temperature=0, max_tokens=64, repetition_penalty=1.0)
outputs = llm.chat([{"role": "user", "content": content}], sampling)
print(outputs[0].outputs[0].text)
"""

SGLANG = """python -m sglang.launch_server --model-path CHECKPOINT --port 8000
vlpress eval --endpoint http://127.0.0.1:8000 --prompt-style vlmevalkit-default \\
  --bench builtin-ocrbench --limit 8
"""

MLX_VLM = """from mlx_vlm import generate, load
from mlx_vlm.prompt_utils import apply_chat_template

model, processor = load("CHECKPOINT")
prompt = apply_chat_template(processor, model.config, "QUESTION", num_images=1)
print(generate(model, processor, prompt, image=["photo.jpg"], max_tokens=64, verbose=False).text)
"""

GPTQMODEL = (
    """from gptqmodel import GPTQModel
from PIL import Image
from transformers import AutoProcessor

model = GPTQModel.load("CHECKPOINT", device="cpu")
"""
    + _CHAT
)


VLLM_ADAPTER = """vllm serve CHECKPOINT --enable-lora --max-lora-rank MAX_RANK \\
  --lora-modules adapter=CHECKPOINT/adapter
vlpress eval --endpoint http://127.0.0.1:8000 --served-model adapter --bench builtin-ocrbench \\
  --limit 8
"""

PEFT = """from peft import PeftModel
from transformers import AutoModelForImageTextToText

model = AutoModelForImageTextToText.from_pretrained("CHECKPOINT", dtype="auto")
model = PeftModel.from_pretrained(model, "CHECKPOINT/adapter")
"""

MAX_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank, which bounds the rank of an adapter."""


@dataclass(frozen=True)
class Snippet:
    """Commands that install an engine, and a program or commands that use it."""

    engine: str
    """As in the table of engines, see `formats.engines`."""
    install: str
    language: Literal["python", "sh"]
    template: str

    def text(self, checkpoint: str, image: str = IMAGE, question: str = QUESTION) -> str:
        """Fill in the checkpoint (folder or hub id), the image file and the question."""
        text = self.template.replace(PATH, checkpoint)
        return text.replace(IMAGE, image).replace("QUESTION", question)


SNIPPETS = (
    Snippet(
        "transformers",
        "pip install transformers compressed-tensors torchvision",
        "python",
        TRANSFORMERS,
    ),
    Snippet("vLLM", "pip install vllm", "python", VLLM),
    Snippet("SGLang", "pip install sglang", "sh", SGLANG),
    Snippet("mlx-vlm", "pip install mlx-vlm", "python", MLX_VLM),
    Snippet("GPTQModel", "pip install gptqmodel torchvision", "python", GPTQMODEL),
)

ADAPTERS = (
    Snippet("vLLM", "pip install vllm", "sh", VLLM_ADAPTER),
    Snippet("transformers", "pip install transformers compressed-tensors peft", "python", PEFT),
)
"""How engines load the low-rank adapter beside a checkpoint."""


def adapter_text(snippet: Snippet, checkpoint: str, rank: int) -> str:
    """Fill in the checkpoint of one of `ADAPTERS`, and the rank of its adapter."""
    largest = next((most for most in MAX_RANKS if most >= rank), rank)
    return snippet.text(checkpoint).replace("MAX_RANK", str(largest))

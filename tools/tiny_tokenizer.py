"""Write the tokenizer, chat template and processor files of the built-in model.

A byte-level BPE trained on the generator's own sentences. Capitals and digits are always separate
tokens, because text in an image is read glyph by glyph.

    python tools/tiny_tokenizer.py OUT_DIR [--thinking]

With `--thinking` the tokenizer has the tags around a reasoning too, and the template opens one in
the form of Qwen3.5.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from vlpress.model.processing.reasoning_tags import BEGIN, END
from vlpress.synthetic import scenes, wording
from vlpress.synthetic.phrases import CHINESE, CHINESE_PHRASES, ENGLISH_PHRASES

VOCAB_SIZE = 1280  # a multiple of 128, special tokens included
THINKING_VOCAB_SIZE = 1312  # a multiple of 32; 30 of its tokens are unused
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
WORD = r"\n| ?[A-Z]?[a-z]+|[A-Z]|[0-9]|[\u4e00-\u9fff]{1,2}| ?[^\sA-Za-z0-9\u4e00-\u9fff]+|\s"
_SYSTEM = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
"""
_CONTENT = """\
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' or 'video' in part -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- elif 'text' in part -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
"""
"""Text of a message, with placeholders for its images and videos."""
CHAT_TEMPLATE = (
    _SYSTEM
    + """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
"""
    + _CONTENT
    + """\
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
)
THINKING_CHAT_TEMPLATE = (
    _SYSTEM
    + """\
{%- set last = namespace(question=-1) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- set last.question = loop.index0 -%}
{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- set text -%}
"""
    + _CONTENT
    + """\
{%- endset -%}
{%- if message['role'] != 'assistant' -%}
{{- text -}}
{%- else -%}
{%- set reasoning = message.get('reasoning_content') or '' -%}
{%- if '</think>' in text -%}
{%- set reasoning = text.split('</think>')[0].split('<think>')[-1] -%}
{%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if loop.index0 > last.question -%}
{{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- text -}}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n<think>\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '\\n</think>\\n\\n' -}}
{%- endif -%}
{%- endif -%}
"""
)


def sentences(count: int = 20000) -> list[str]:
    """Questions and answers of the training stream, and every wording once."""
    rng = scenes.stream_random(scenes.Stream.TRAINING, 0)
    out = ["You are a helpful assistant.", "system", "user", "assistant"] * 50
    for phrases in (*ENGLISH_PHRASES.values(), *CHINESE_PHRASES.values()):
        out += phrases
    out += [f" {word}" for word in CHINESE] * 20 + list(CHINESE.values()) * 20
    for _ in range(count // 4):
        scene = scenes.draw_scene(rng)
        for question in rng.sample(scene.questions, min(4, len(scene.questions))):
            language = "zh" if rng.random() < 0.2 else "en"
            options = wording.choose_options(question, rng, 4) if rng.random() < 0.5 else ()
            worded = wording.word_question(question, options, rng, language=language)
            out += [worded.body(language=language), worded.answer]
            if rng.random() < 0.1:
                out.append(wording.SHORT_ANSWER_SUFFIX)
    random.Random(0).shuffle(out)
    return out


def train() -> Tokenizer:
    """Train the tokenizer, deterministically."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def add_thinking(tokenizer: Tokenizer) -> None:
    """Add the tags around a reasoning in place; they are kept when text is decoded, as in Qwen's.

    The ids of all other tokens stay.
    """
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in (BEGIN, END)])


def write(folder: Path, *, thinking: bool = False) -> None:
    """Write the tokenizer, its config, and the generation config."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, template = train(), CHAT_TEMPLATE
    if thinking:
        add_thinking(tokenizer)
        template = THINKING_CHAT_TEMPLATE
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": 32768,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
            "chat_template": template,
        },
        "generation_config.json": {
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
            "do_sample": False,
            "repetition_penalty": 1.0,
        },
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]), thinking="--thinking" in sys.argv[2:])

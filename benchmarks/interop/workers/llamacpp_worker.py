"""Ask llama.cpp the questions of each job; runs in its environment, see `with_llamacpp.py`.

python llamacpp_worker.py JOBS.json

Images and prompts pass through llama.cpp's own library for them (mtmd). Keys and values are cached
in float32, and answers are greedy.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import questions
from llama_cpp import mtmd_cpp as mtmd
from numpy.typing import NDArray

THREADS = 1
CONTEXT = 2048
IMAGE = -1
"""In a list of tokens: a token of an image."""


def main() -> None:
    """Run the jobs on the CPU."""
    llama_cpp.llama_backend_init()
    questions.run_jobs(run, ("llama_cpp_python",))


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Answer all questions with one pair of files; arrays are stored as NAME.npz."""
    model = Model(job["text"], job["mmproj"])
    answers, arrays = {}, {}
    for key, row in questions.read(job["questions"]).items():
        asked = model.ask(row, job["max_new_tokens"], set(job["stop_ids"]))
        answers[key] = {"prompt": asked["prompt"], "answer": asked["answer"]}
        arrays[f"{key}/features"], arrays[f"{key}/logits"] = asked["features"], asked["logits"]
    np.savez(Path(job["out"]).with_suffix(".npz"), **arrays)
    return {"answers": answers}


class Model:
    """A text model and its mmproj file, loaded."""

    def __init__(self, text: str, mmproj: str) -> None:
        self.model = llama_cpp.llama_model_load_from_file(
            text.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise ValueError(f"llama.cpp cannot load {text}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = CONTEXT
        parameters.n_threads = parameters.n_threads_batch = THREADS
        parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)
        of_vision = mtmd.mtmd_context_params_default()
        of_vision.use_gpu = of_vision.warmup = of_vision.print_timings = False
        of_vision.n_threads = THREADS
        of_vision.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.vision = mtmd.mtmd_init_from_file(mmproj.encode(), self.model, of_vision)
        if not self.vision:
            raise ValueError(f"llama.cpp cannot load {mmproj}")
        self.width = llama_cpp.llama_model_n_embd_inp(self.model)

    def ask(self, row: list[questions.Part], limit: int, stop_ids: set[int]) -> dict[str, Any]:
        """Answer a prompt, whose text has the marker of mtmd in the place of its image."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        text = "".join(value for kind, value in row if kind == "text")
        chunks = self._tokenize(text, [value for kind, value in row if kind == "image"])
        prompt, features, position = [], [], ctypes.c_int32(0)
        for index in range(count := mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, index)
            size = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_TEXT:
                length = ctypes.c_size_t()
                tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(length))
                prompt += [int(tokens[i]) for i in range(length.value)]
            else:
                prompt += [IMAGE] * size
            status = mtmd.mtmd_helper_eval_chunk_single(
                self.vision, self.context, chunk, position.value, 0, CONTEXT, index + 1 == count,
                ctypes.byref(position),
            )  # fmt: skip
            if status != 0:
                raise ValueError(f"llama.cpp cannot read a chunk of {size} tokens ({status})")
            if prompt[-1] == IMAGE:
                output = mtmd.mtmd_get_output_embd(self.vision)
                values = np.ctypeslib.as_array(output, shape=(size, self.width))
                features.append(values.copy())
        mtmd.mtmd_input_chunks_free(chunks)
        logits = first = self._logits()
        answer: list[int] = []
        while len(answer) < limit and (token := int(logits.argmax())) not in stop_ids:
            answer.append(token)
            logits = self._read(token)
        return {
            "prompt": prompt,
            "answer": answer,
            "features": np.concatenate(features),
            "logits": first,
        }

    def _tokenize(self, text: str, images: list[str]) -> Any:
        bitmaps = []
        for data in images:
            pixels = np.asarray(questions.open_image(data), np.uint8)
            height, width, _ = pixels.shape
            raw = (ctypes.c_uint8 * pixels.size).from_buffer_copy(pixels.tobytes())
            bitmaps.append(mtmd.mtmd_bitmap_init(width, height, raw))
        chunks = mtmd.mtmd_input_chunks_init()
        encoded = text.encode()
        given = mtmd.mtmd_input_text(
            text=encoded, text_len=len(encoded), add_special=False, parse_special=True
        )
        array = (mtmd.mtmd_bitmap_p_ctypes * len(bitmaps))(*bitmaps)
        status = mtmd.mtmd_tokenize(self.vision, chunks, ctypes.byref(given), array, len(bitmaps))
        for bitmap in bitmaps:
            mtmd.mtmd_bitmap_free(bitmap)
        if status != 0:
            raise ValueError(f"mtmd cannot tokenize the prompt ({status})")
        return chunks

    def _read(self, token: int) -> NDArray[np.float32]:
        """Read one token; return the logits of the next one."""
        array = (ctypes.c_int32 * 1)(token)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, 1)):
            raise ValueError("llama.cpp cannot read a token of the answer")
        return self._logits()

    def _logits(self) -> NDArray[np.float32]:
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).copy()


if __name__ == "__main__":
    main()

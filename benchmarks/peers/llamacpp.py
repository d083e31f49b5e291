"""Write the decoder of a checkpoint as GGUF, and measure its speed in llama.cpp.

    python benchmarks/peers/llamacpp.py write FOLDER OUT.gguf --type q4_0 --head bf16
    python benchmarks/peers/llamacpp.py time FILE.gguf [--prompt 1024] [--answer 32] [--threads 2]

Runs in a separate environment (built by `make bench`), without vlpress. `write` copies the weights
of a Qwen2-VL or Qwen2.5-VL folder and quantizes them with llama.cpp; the head has a separate type.
Positions of text are equal in all three sections of M-RoPE, so that the plain Qwen2 architecture
computes the same as the decoder. `time` prints a line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import gguf
import llama_cpp
import numpy as np
from numpy.typing import NDArray

FILE_TYPES = {
    "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
}
TENSOR_TYPES = {
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
# Names of a layer's tensors in the checkpoint and in GGUF.
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FIRST_TOKENS = 256  # the prompt's tokens are below it, so that none is special


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    verbs = parser.add_subparsers(dest="verb", required=True)
    writing = verbs.add_parser("write")
    writing.add_argument("folder", type=Path)
    writing.add_argument("out", type=Path)
    writing.add_argument("--type", choices=list(FILE_TYPES), default="q4_0")
    writing.add_argument("--head", choices=list(TENSOR_TYPES), default="bf16")
    writing.add_argument("--threads", type=int, default=2)
    timing = verbs.add_parser("time")
    timing.add_argument("file", type=Path)
    timing.add_argument("--prompt", type=int, default=1024, help="tokens")
    timing.add_argument("--answer", type=int, default=32, help="tokens")
    timing.add_argument("--rounds", type=int, default=3, help="after one that warms up")
    timing.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    llama_cpp.llama_backend_init()
    if options.verb == "time":
        print(json.dumps(measure(options)))
    else:
        with tempfile.TemporaryDirectory(dir=options.out.parent) as scratch:
            plain = Path(scratch) / "bf16.gguf"
            write(options.folder, plain)
            quantize(plain, options.out, options.type, options.head, options.threads)


def write(folder: Path, out: Path) -> None:
    """Write the decoder in bf16, with a separate head even if the checkpoint ties it."""
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    writer = gguf.GGUFWriter(out, "qwen2")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    tensors = dict(bf16_tensors(folder))
    tensors.setdefault(HEAD, tensors[EMBEDDING])
    for name, values in tensors.items():
        new = gguf_name(name)
        if new is None:
            continue
        if values.ndim == 1:  # GGUF stores norms and biases in float32
            writer.add_tensor(new, (values.astype(np.uint32) << 16).view(np.float32))
        else:
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(new, values.view(np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str | None:
    """GGUF's name of a tensor of the checkpoint; None outside the decoder."""
    names = {
        EMBEDDING: "token_embd.weight",
        HEAD: "output.weight",
        "model.norm.weight": "output_norm.weight",
    }
    if name in names:
        return names[name]
    if not name.startswith("model.layers."):
        return None
    index, _, rest = name.removeprefix("model.layers.").partition(".")
    module, _, kind = rest.rpartition(".")
    return f"blk.{index}.{NAMES[module]}.{kind}"


def bf16_tensors(folder: Path) -> Iterator[tuple[str, NDArray[np.uint16]]]:
    """All tensors of a checkpoint as bf16 bit patterns."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(size))
        data = np.memmap(path, np.uint8, mode="r", offset=8 + size)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                sys.exit(f"{path}: {name} is {entry['dtype']}; only BF16 is read")
            begin, end = entry["data_offsets"]
            yield name, data[begin:end].view(np.uint16).reshape(entry["shape"])


def quantize(plain: Path, out: Path, kind: str, head: str, threads: int) -> None:
    """Quantize a GGUF file to another type with llama.cpp."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = threads
    parameters.ftype = FILE_TYPES[kind]
    parameters.output_tensor_type = TENSOR_TYPES[head]
    parameters.token_embedding_type = TENSOR_TYPES["bf16"]
    files = str(plain).encode(), str(out).encode()
    if llama_cpp.llama_model_quantize(*files, ctypes.byref(parameters)) != 0:
        sys.exit(f"llama.cpp could not quantize {plain}")


class Model:
    """A loaded file and its context."""

    def __init__(self, path: Path, tokens: int, threads: int) -> None:
        """Allocate a context for this many tokens, with a whole prompt as one batch."""
        self.model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = tokens
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(vocabulary)

    def forget(self) -> None:
        """Clear the KV cache."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def read(self, tokens: list[int]) -> int:
        """Process tokens and return the most likely next one."""
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens))):
            sys.exit(f"llama.cpp cannot read {len(tokens)} tokens")
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocabulary,)).argmax())


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds to the first token, and per later token."""
    model = Model(options.file, options.prompt + options.answer, options.threads)
    random = np.random.default_rng(0)
    prefills, steps = [], []
    for turn in range(options.rounds + 1):
        prompt = random.integers(0, FIRST_TOKENS, options.prompt).tolist()
        model.forget()
        times = [time.perf_counter()]
        token = model.read(prompt)
        times.append(time.perf_counter())
        for _ in range(options.answer - 1):
            token = model.read([token])
            times.append(time.perf_counter())
        between = np.diff(times).tolist()
        if turn:
            prefills.append(between[0])
            steps += between[1:]
    return {
        "prefill_seconds": median(prefills),
        "token_seconds": median(steps),
        "bytes": options.file.stat().st_size,
        "version": version("llama-cpp-python"),
        "system": llama_cpp.llama_print_system_info().decode(),
    }


if __name__ == "__main__":
    main()

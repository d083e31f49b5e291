"""Small random Qwen-VL models, their checkpoints and prompts, for the calib and quant tests."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlpress.model.config import ModelConfig
from vlpress.model.loading import build_model
from vlpress.model.processing.inputs import Prompt, Visual
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.rope import mrope_ids

IMAGE, VIDEO, START, END = 90, 91, 92, 93


def raw_config(family: str = "qwen2_5_vl", *, tied: bool = True, **text: Any) -> dict[str, Any]:
    """config.json of a model small enough for a test, in the hub's flat form."""
    vision: dict[str, Any] = {
        "depth": 2,
        "num_heads": 2,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32, "mlp_ratio": 4, "hidden_size": 64}
    else:
        vision |= {
            "hidden_size": 32,
            "intermediate_size": 36,  # divisible by 4 only, as 3420 is
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": family,
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": tied,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "torch_dtype": "float32",
        "vision_config": vision,
    } | text


def random_model(
    raw: dict[str, Any] | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> QwenVL:
    """A model with every parameter random, biases and norms too."""
    config = ModelConfig.from_dict(raw or raw_config())
    model = build_model(config, device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name or "ln_q" in name:
            parameter.data = 1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise
        elif name.endswith("bias"):
            parameter.data = 0.2 * noise
        else:
            parameter.data = noise / parameter[0].numel() ** 0.5
    model.model.embed_tokens.weight.data.mul_(8)
    return model.to(dtype).requires_grad_(False)


def visual(grid: tuple[int, int, int], seed: int, kind: Any = "image") -> Visual:
    """Random patches of one visual."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(grid[0] * grid[1] * grid[2], 3 * 2 * 14 * 14, generator=generator)
    return Visual(kind, patches, grid, 1.0 if kind == "video" else 0.0, f"digest-{grid}-{seed}")


def prompt(config: ModelConfig, grids: list[tuple[int, int, int]], words: int, seed: int) -> Prompt:
    """Random words around visuals; a grid of more than one frame is a video."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(90, (3,), generator=generator).tolist()
    visuals = []
    for index, grid in enumerate(grids):
        kind = "video" if grid[0] > 1 else "image"
        visuals.append(visual(grid, seed * 100 + index, kind))
        tokens = grid[0] * grid[1] * grid[2] // 4
        pad = config.video_token_id if kind == "video" else config.image_token_id
        ids += [config.vision_start_token_id, *[pad] * tokens, config.vision_end_token_id]
    ids += torch.randint(90, (words,), generator=generator).tolist()
    input_ids = torch.tensor(ids)
    seconds = [v.seconds_per_grid for v in visuals]
    return Prompt(input_ids, mrope_ids(input_ids, grids, seconds, config), tuple(visuals))


def prompts(config: ModelConfig) -> list[Prompt]:
    """Text, one image, three unequal images, a video: what calibration must keep apart."""
    return [
        prompt(config, [], 20, 1),
        prompt(config, [(1, 4, 4)], 12, 2),
        prompt(config, [(1, 4, 6), (1, 2, 2), (1, 8, 4)], 9, 3),
        prompt(config, [(3, 4, 4)], 7, 4),
    ]


def stored_tensors(model: QwenVL, *, nested: bool = False) -> dict[str, Tensor]:
    """The model's tensors under the names of either generation."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if nested:
            if name.startswith("model."):
                name = "model.language_model." + name.removeprefix("model.")
            elif name.startswith("visual."):
                name = "model." + name
        tensors[name] = parameter.data.contiguous()
    return tensors


def write_checkpoint(
    folder: Path,
    model: QwenVL,
    *,
    nested: bool = False,
    shards: int = 1,
    side_files: bool = True,
) -> Path:
    """Write a model as the hub would; with side files whose bytes no library would reproduce."""
    folder.mkdir(parents=True)
    raw = dict(model.config.raw)
    (folder / "config.json").write_text(json.dumps(raw, indent=4))
    tensors = stored_tensors(model, nested=nested)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = sorted(tensors)
        weight_map: dict[str, str] = {}
        for index in range(shards):
            file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
            part = names[index::shards]
            save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        index_file = {"metadata": {"total_size": 0}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    if side_files:
        (folder / "tokenizer_config.json").write_bytes(b'{ "odd" :\t"spacing"}\r\n')
        (folder / "preprocessor_config.json").write_bytes(b'{"min_pixels":3136}')
        (folder / "chat_template.jinja").write_bytes("{{ '中' }}".encode())
        (folder / "README.md").write_text("not a side file")
    return folder

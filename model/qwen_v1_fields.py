"""Sections of the `config.json` of Qwen-VL of 2023, which has keys of its own.

Missing keys take the defaults of the original configuration class, which are those of Qwen-7B.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

from ..common.validation import Allowed, Integer, Real
from .config_fields import Depth, Epsilon, Positions, Section, Theta, Token, Vocabulary, Width

STORED_POSITIONS = 256
"""Rows of the tower's table of positions; not a field of config.json."""
RESAMPLER_HEAD = 128
"""Channels of a head of the resampler; not a field either."""
IMAGE_PAD_OFFSET = 2
"""The tokens of an image's start, end and padding have ids in a row."""


class QwenV1VisionSection(Section):
    """The object `visual`."""

    depth: Depth = Field(validation_alias="layers")
    num_heads: Depth = Field(validation_alias="heads")
    hidden_size: Width = Field(validation_alias="width")
    out_hidden_size: Width = Field(validation_alias="output_dim")
    patch_size: Annotated[int, Integer(1, 256, integral=True)]
    image_size: Annotated[int, Integer(1, 2**14, integral=True)]
    mlp_ratio: Annotated[float, Real(above=0, most=64)]
    n_queries: Annotated[int, Integer(1, 2**16, integral=True)] = 256
    image_start_id: Token = 151857

    @property
    def patches_per_query(self) -> int:
        """Patches per query along a side; 0: the queries do not divide the patches."""
        side, queries = self.image_size // self.patch_size, math.isqrt(self.n_queries)
        fits = self.image_size % self.patch_size == 0 and queries**2 == self.n_queries
        return side // queries if fits and side % queries == 0 else 0


class QwenV1TextSection(Section):
    """Keys of the decoder, at the top level."""

    vocab_size: Vocabulary = 151936
    hidden_size: Width = 4096
    intermediate_size: Width = 22016  # of w1 and w2 together
    num_hidden_layers: Depth = 32
    num_attention_heads: Depth = 32
    kv_channels: Width = 128
    layer_norm_epsilon: Epsilon = 1e-6
    max_position_embeddings: Positions = 8192
    rotary_emb_base: Theta = 10000.0
    rotary_pct: Annotated[float, Real(least=1, most=1)] = 1.0
    seq_length: Positions = 2048
    scale_attn_weights: Annotated[
        Literal[True], Allowed("true (scores without a scale are not implemented)")
    ] = True
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: Annotated[
        Literal[True], Allowed("true (biases of c_proj, w1 and w2 are not implemented)")
    ] = True
    tie_word_embeddings: Annotated[
        Literal[False], Allowed("false (a tied head is not implemented)")
    ] = False

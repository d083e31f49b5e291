"""Names of the KV cache types; imports nothing, because the command line lists them."""

from __future__ import annotations

from typing import Literal

CacheType = Literal["model", "int8", "int4", "fp8"]
CacheChoice = Literal["recipe", "model", "int8", "int4", "fp8"]
"""`recipe`: as the checkpoint asks for."""

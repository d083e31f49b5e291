"""Reading quantized checkpoints of any format that is stored in such a folder, layer by layer."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....model.carried import CarriedTensors
from ....model.checkpoint import CheckpointReader, module_name
from ....model.config import ModelConfig, read_checkpoint_json
from ....model.families import EMBEDDING, family_of
from ....model.kv_quant.scales import KVScales
from ....model.loading import build_model, check_tied_head, stored_shapes
from ....model.token_reduction.rule import ReductionRule
from ....model.token_reduction.table import read_rule
from ....model.weight_files import refuse_adapter
from ...compressed_weight import CompressedWeight
from ...recipe.adapter import ADAPTER
from ...recipe.kv_cache import KVCacheScheme
from ...recipe.scheme import Scheme
from ...recipe.vision_input import VISUAL_TOKENS
from ..adapter import FOLDER, StoredAdapter, find_adapter
from ..formats.contents import Contents, Solver
from ..formats.format import group_index
from ..formats.table import format_of
from ..kv_scales import read_scales, scale_names
from .shards import REPORT_FILE


class QuantizedCheckpoint:
    """A checkpoint folder with a `quantization_config`; all names are canonical.

    Args:
        folder: folder with config.json and the weights.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is an adapter, not quantized, of an unknown format, or has layers that the
            model of its config.json does not have.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        refuse_adapter(folder)
        self.config = ModelConfig.from_folder(folder)
        raw = self.config.raw.get("quantization_config")
        if not isinstance(raw, dict):
            raise ValueError(f"{folder}: is not quantized; load it with load_model")
        self.reader = CheckpointReader(folder)
        self._specs = {spec.name: spec for spec in family_of(self.config).targets(self.config)}
        try:
            self.format = format_of(raw)
            settings = self.format.settings(raw)
            self.schemes: dict[str, Scheme] = {
                name: settings.scheme(self._names(name)) for name in self._stored_layers()
            }
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    @property
    def record(self) -> dict[str, Any] | None:
        """Record of the run that wrote it (`vlpress.json`); None if it is not by vlpress."""
        path = self.folder / REPORT_FILE
        return read_checkpoint_json(path) if path.is_file() else None

    @property
    def reduction(self) -> ReductionRule | None:
        """Rule that drops visual tokens, from its record; None: all are kept.

        Raises:
            ValueError: the rule is unknown or has an option out of range.
        """
        if (rule := (self.record or {}).get(VISUAL_TOKENS)) is None:
            return None
        return read_rule(rule, str(self.folder / REPORT_FILE), VISUAL_TOKENS)

    @cached_property
    def adapter(self) -> StoredAdapter | None:
        """Its low-rank adapter; None if it has none.

        Raises:
            FileNotFoundError: a file of the adapter is missing.
            ValueError: the adapter is unusable, or the record names one and there is none.
        """
        stored = find_adapter(self.folder, self._specs)
        if stored is None and ADAPTER in (self.record or {}):
            raise ValueError(
                f"{self.folder}: {REPORT_FILE} names an adapter, and there is no folder {FOLDER}; "
                "fetch the checkpoint again, or run it without (--no-adapter)"
            )
        return stored

    def contents(self) -> Contents:
        """Return the contents, for the check of another format; reads only group indices.

        Raises:
            ValueError: a group index is out of range.
        """
        reordered = frozenset(name for name in self.schemes if self._is_reordered(name))
        scheme = None if self.kv_scales() is None else KVCacheScheme()
        solver = Solver.from_record(self.record)
        carried = CarriedTensors.of(self.config, self.reader).layers
        return Contents(self.config, self.schemes, reordered, solver, scheme, carried)

    @property
    def layers(self) -> list[str]:
        """Names of the quantized layers that the model computes with."""
        return [name for name in self.schemes if self._specs[name].part != "mtp"]

    @property
    def quantizes_cache(self) -> bool:
        """Whether engines use an FP8 KV cache for it unless they are told otherwise."""
        return bool(self.config.raw["quantization_config"].get("kv_cache_scheme"))

    def kv_scales(self) -> list[KVScales] | None:
        """Read the scales of an FP8 KV cache, layer by layer; None if there are none.

        Raises:
            ValueError: a scale is missing or unusable.
        """
        try:
            scales = read_scales(self.reader, self.config.text.cached_layers)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None
        if scales is None and self.quantizes_cache:
            raise ValueError(
                f"{self.folder}: config.json has a kv_cache_scheme, but no layer has a k_scale; "
                "the checkpoint is incomplete"
            )
        return scales

    def weight(self, name: str, device: torch.device | None = None) -> CompressedWeight:
        """Read one layer.

        Args:
            name: canonical name of the layer.
            device: of the result; None = CPU.

        Raises:
            ValueError: a tensor is missing or damaged, or has a size other than by config.json.
        """
        tensors = {
            part: self.reader.tensor(f"{name}.{part}").to(device or torch.device("cpu"))
            for part in self.format.parts
            if f"{name}.{part}" in self.reader
        }
        try:
            weight = self.format.decode(tensors, self.schemes[name], name)
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None
        spec = self._specs[name]
        shape = [weight.out_features, weight.in_features]
        if shape != [spec.out_features, spec.in_features]:
            raise ValueError(
                f"{self.folder}: {name} is {shape}, config.json asks for "
                f"{[spec.out_features, spec.in_features]}; they belong to different models"
            )
        return weight

    def bias(self, name: str) -> Tensor | None:
        """Return the stored bias of a layer, if the model has one there."""
        return self.reader.tensor(f"{name}.bias") if self._specs[name].bias else None

    def is_spurious(self, name: str) -> bool:
        """Tell whether a tensor is a bias where the model has none; AutoGPTQ writes zeros there."""
        owner, _, leaf = name.rpartition(".")
        return leaf == "bias" and owner in self.schemes and not self._specs[owner].bias

    def check(self) -> None:
        """Compare the names of the stored tensors with those of the model.

        Reads only the biases that the model does not have, and a tied head that is stored.

        Raises:
            ValueError: a tensor is missing or unknown, a bias that the model does not have is not
                zero, or a tied head is stored and differs from the embedding.
        """
        model = build_model(self.config)
        parameters = set(stored_shapes(self.reader, model))
        packed = {f"{layer}.{part}" for layer in self.schemes for part in self.format.parts}
        stored = set(self.reader.names())
        carried = tuple(family_of(self.config).carried_parts(self.config))
        scales = scale_names(self.config.text.cached_layers)
        weights = {f"{name}.weight" for name in self.schemes}
        slices: dict[str, list[str]] = {}
        for name, spec in self._specs.items():
            if spec.slice is not None:
                slices.setdefault(spec.slice.tensor, []).append(name)
        weights |= {t for t, names in slices.items() if all(n in self.schemes for n in names)}
        missing = sorted(parameters - weights - stored)
        unknown = [
            name
            for name in sorted(stored - parameters - packed - scales - {"lm_head.weight"})
            if not name.endswith(".inv_freq")
            and not name.startswith(carried)
            and not self.is_spurious(name)
        ]
        if missing or unknown:
            if missing:
                problem = f"{missing[0]} is missing"
            else:
                problem = f"{unknown[0]} is unknown to this model"
            raise ValueError(
                f"{self.folder}: {problem}; the checkpoint is incomplete or of another model"
            )
        check_tied_head(self.reader, model)
        for name in sorted(filter(self.is_spurious, stored)):
            if bool(self.reader.tensor(name).any()):
                raise ValueError(
                    f"{self.folder}: {name} is not zero, but this model has no bias there"
                )

    def _stored_layers(self) -> list[str]:
        """Return the layers that are stored quantized, in the order of computation."""
        stored = {
            owner
            for owner, _, part in (name.rpartition(".") for name in self.reader.names())
            if part in self._markers
        }
        for name in sorted(stored - set(self._specs)):
            raise ValueError(
                f"{name} is quantized, but config.json has no such layer; they belong to "
                "different models"
            )
        if EMBEDDING in stored and self.config.text.tie_word_embeddings:
            raise ValueError(
                f"{EMBEDDING} is quantized, and config.json says tie_word_embeddings; allowed: an "
                "output head of its own, because engines only look rows up in a quantized embedding"
            )
        return [name for name in self._specs if name in stored]

    @property
    def _markers(self) -> tuple[str, ...]:
        return self.format.marker, *self.format.other_markers

    def _is_reordered(self, name: str) -> bool:
        part = f"{name}.{self.format.order_part}"
        if part not in self.reader:
            return False
        groups = self.schemes[name].groups(self._specs[name].in_features)
        try:
            return group_index(self.reader.tensor(part), groups, part) is not None
        except ValueError as error:
            raise ValueError(f"{self.folder}: {error}") from None

    def _names(self, name: str) -> Sequence[str]:
        """Return a layer's possible names: canonical, in the file, and in newer libraries."""
        marker = next(m for m in self._markers if f"{name}.{m}" in self.reader)
        source = self.reader.source_name(f"{name}.{marker}")
        return list(dict.fromkeys([name, source.removesuffix(f".{marker}"), module_name(name)]))

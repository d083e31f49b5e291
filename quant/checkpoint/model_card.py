"""The model card of a checkpoint: README.md with the metadata block of model hubs.

It states the base model, recipe, calibration and sizes, the scores if an evaluation was made, and
how to load the checkpoint. It contains no times and no local paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...common.atomic import write_text
from ...common.progress import format_bytes
from ...model.families import family_of
from ...model.token_reduction.table import describe_rule
from ..prepare.result import KEY, prepared_record
from ..recipe.adapter import ADAPTER, describe_adapter, holds_weights
from ..recipe.mask import describe_mask
from ..recipe.recover import NAME as RECOVER
from ..recipe.recover import describe_recovery
from ..recipe.vision_input import MAX_PIXELS, VISUAL_TOKENS
from .adapter import FOLDER, StoredAdapter
from .formats.engines import Support, engine_support
from .safetensors_folder.reading import QuantizedCheckpoint
from .snippets import ADAPTERS, SNIPPETS, Snippet, adapter_text

CARD = "README.md"
BASE_KEY = "quantized_from"
"""Metadata key of the original model's name, for models that are on no hub too."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LICENSE_KEYS = ("license", "license_name", "license_link")
OUTCOMES = {"loads": "loads it", "refuses": "refuses it", "untested": "not tried"}
NOT_SERVED = """## Use

No engine of today loads this family; `vlpress generate` and `vlpress eval` do."""
PLACE = "path/to/this/checkpoint"


@dataclass(frozen=True)
class Base:
    """The model that a checkpoint was made from."""

    name: str
    """Hub id, or the name of its folder."""
    license: Mapping[str, str]
    """License fields of its own model card; empty if it states none."""

    @classmethod
    def of(cls, name: str | Path, folder: Path) -> Base:
        """Describe a model.

        Args:
            name: as the user gave it: a hub id, a folder or a built-in model.
            folder: where its files are.
        """
        path = Path(name)
        return cls(path.resolve().name if path.exists() else str(name), _license(folder))

    @property
    def hub_id(self) -> str | None:
        """Its name, if that is a hub id."""
        return self.name if HUB_ID.fullmatch(self.name) else None


def write_model_card(checkpoint: Path, base: Base, scores: str = "") -> None:
    """Write the model card of a quantized or prepared checkpoint, replacing an earlier one.

    Args:
        checkpoint: folder of a complete checkpoint.
        base: the original model.
        scores: a section in Markdown; empty if it was not evaluated.

    Raises:
        ValueError: the folder is neither.
    """
    if (record := prepared_record(checkpoint)) is not None:
        write_text(checkpoint / CARD, _prepared_card(base, record, scores))
        return
    opened = QuantizedCheckpoint(checkpoint)
    contents, record = opened.contents(), opened.record or {}
    support = engine_support(contents, opened.format.name)
    schemes = {scheme.label: len(names) for scheme, names in contents.by_scheme.items()}
    text = "\n\n".join(
        part
        for part in (
            f"---\n{_metadata(base, opened.format.name)}\n---",
            f"# {base.name}, quantized: {', '.join(schemes)}",
            f"Quantized with vlpress from {base.name}. {_license_text(base)}",
            _facts(opened.format.name, schemes, record),
            scores.strip(),
            _engines(support),
            *(_snippets(support) if family_of(contents.config).served else [NOT_SERVED]),
            *_adapter(opened.adapter, needed=holds_weights(record)),
        )
        if part
    )
    write_text(checkpoint / CARD, text + "\n")


def _prepared_card(base: Base, record: Mapping[str, Any], scores: str) -> str:
    """Compose the card of a float checkpoint that preparations changed."""
    methods = ", ".join(entry["method"] for entry in record[KEY])
    parts = (
        f"---\n{_metadata(base, None)}\n---",
        f"# {base.name}, prepared: {methods}",
        f"Made with vlpress from {base.name}; nothing is quantized. {_license_text(base)}",
        _facts("float", {}, record),
        scores.strip(),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def base_of_card(checkpoint: Path) -> Base:
    """Read the original model of a quantized checkpoint from its card, for a copy of it.

    Without a card, or with one that names no model, it is the checkpoint itself.
    """
    named = _read_metadata(checkpoint).get(BASE_KEY)
    name = named if isinstance(named, str) else checkpoint.resolve().name
    return Base(name, _license(checkpoint))


def _read_metadata(folder: Path) -> dict[str, Any]:
    """Read the metadata of a folder's card; empty without one, or if it is not valid YAML."""
    path = folder / CARD
    if not path.is_file():
        return {}
    from huggingface_hub.repocard import metadata_load  # a tenth of a second

    try:
        data = metadata_load(path)
    except (yaml.YAMLError, ValueError, UnicodeDecodeError):
        return {}
    return dict(data or {})


def _license(folder: Path) -> dict[str, str]:
    data = _read_metadata(folder)
    return {key: data[key] for key in LICENSE_KEYS if isinstance(data.get(key), str)}


def _license_text(base: Base) -> str:
    if stated := base.license.get("license_name") or base.license.get("license"):
        return f"License: {stated}."
    return "The license of the original model applies."


def _metadata(base: Base, format: str | None) -> str:
    """Compose the metadata block; `format` is None for a float checkpoint."""
    from huggingface_hub import ModelCardData

    fields: dict[str, Any] = {
        "base_model": base.hub_id,
        "base_model_relation": "quantized" if base.hub_id and format else None,
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vlpress", *(("quantized", format) if format else ())],
        **base.license,
        BASE_KEY: base.name,
    }
    return str(ModelCardData(**fields).to_yaml()).strip()


def _facts(format: str, schemes: Mapping[str, int], record: Mapping[str, Any]) -> str:
    """List what is known of the making of a checkpoint; `record` is empty for other writers."""
    facts = [
        f"Format: {format}",
        *(f"{count} layers: {label}" for label, count in schemes.items()),
    ]
    if size := record.get("size"):
        facts.append(
            f"Tensors: {format_bytes(size['base_bytes'])} before, "
            f"{format_bytes(size['candidate_bytes'])} after"
            + (
                f"; {size['bits_per_weight']:.2f} bits per weight in the quantized layers"
                if schemes
                else ""
            )
        )
    facts += [describe_mask(mask) for mask in record.get("masks", ())]
    if recovery := record.get(RECOVER):
        facts.append(f"R{describe_recovery(recovery)[1:]}")
    if adapter := record.get(ADAPTER):
        facts.append(f"A{describe_adapter(adapter)[1:]}, in the folder {FOLDER}")
    if rule := record.get(VISUAL_TOKENS):
        facts.append(f"V{describe_rule(rule)[1:]}")
    if max_pixels := record.get(MAX_PIXELS):
        facts.append(f"Images: at most {max_pixels} pixels, in the processor's configuration")
    if recipe := record.get("recipe"):
        methods = dict.fromkeys(step["method"] for step in recipe.get("step", ()))
        facts.append(f"Recipe: {recipe['name']} ({', '.join(methods)})")
        calibration = record.get("calibration")
        facts.append(_calibration(calibration) if calibration else "No calibration")
        versions = record.get("versions", {})
        facts.append("Made with " + ", ".join(f"{k} {v}" for k, v in versions.items()))
    return "\n".join(f"- {fact}" for fact in facts)


def _calibration(calibration: Mapping[str, Any]) -> str:
    return (
        f"Calibration: {calibration['samples']} samples of {calibration['tokens']} tokens in all, "
        f"{calibration['with_images']} with images; sha256 {calibration['fingerprint'][:16]}"
    )


def _engines(support: Iterable[Support]) -> str:
    rows = (
        f"| {entry.engine} {entry.version} ({entry.device}) | {OUTCOMES[entry.outcome]} "
        f"| {entry.note} |"
        for entry in support
    )
    return "\n".join(("## Engines", "", "| engine | outcome | note |", "|---|---|---|", *rows))


def _snippets(support: Sequence[Support]) -> list[str]:
    """Show the programs of the engines that load a checkpoint, or else of those not tried."""
    engines = {outcome: {e.engine for e in support if e.outcome == outcome} for outcome in OUTCOMES}
    is_tried = bool(engines["loads"])
    chosen = engines["loads" if is_tried else "untested"]
    parts = [_shown(each, each.text(PLACE)) for each in SNIPPETS if each.engine in chosen]
    head = ["## Use"] if is_tried else ["## Use", "Not tried with a checkpoint of this kind:"]
    return [*head, *parts] if parts else []


def _adapter(adapter: StoredAdapter | None, *, needed: bool) -> list[str]:
    """Show how engines load the low-rank adapter; nothing without one."""
    if adapter is None:
        return []
    head = (
        f"## Adapter\n\nThe folder `{FOLDER}` holds low-rank corrections (LoRA, rank "
        f"{adapter.rank}). The programs above run without them; these add them"
        + (", and must: they hold a part of the weights." if needed else ".")
    )
    texts = ((each, adapter_text(each, PLACE, adapter.rank)) for each in ADAPTERS)
    return [head, *(_shown(snippet, text) for snippet, text in texts)]


def _shown(snippet: Snippet, text: str) -> str:
    code = f"```{snippet.language}\n{text.strip()}\n```"
    return f"### {snippet.engine}\n\n`{snippet.install}`\n\n{code}"

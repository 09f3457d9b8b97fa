"""What ``adapter_config.json`` says beside PEFT's own fields: of which base, with which structure, and what must come out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from unidecouple.convert.json_files import read_json
from unidecouple.models.families import configuration, model_class

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OURS = "UNIDECOUPLE"
"""``peft_type`` of an adapter that PEFT has no form for; PEFT knows no such type and stops (``KeyError``)."""


@dataclass(frozen=True)
class AdapterRecord:
    """All that rebuilding a checkpoint takes besides the base and the adapter's weights.

    It stands in PEFT's field ``auto_mapping``, a free dictionary about the base's class: PEFT warns of any field of its config
    that it does not know.

    Attributes:
        base_sha256: ``fingerprint`` of the base's weights as stored.
        sha256: ``fingerprint`` of the checkpoint's.
        seed: of the routers where a dense base becomes a mixture (``restructure``).
        dtypes: type of the weights in each module of the checkpoint.
        config: its config.json, structure and low-rank updates in it.
        not_peft: why PEFT cannot read the adapter; empty where it can.
    """

    base_sha256: str
    sha256: str
    seed: int
    dtypes: dict[str, str]
    config: dict[str, Any]
    not_peft: list[str]

    def to_json(self, base: str, lora: dict[str, Any]) -> dict[str, Any]:
        """``adapter_config.json``; ``lora`` are fields of PEFT's ``LoraConfig``."""
        kind = model_class(configuration(self.config))
        mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
        return {
            "peft_type": OURS if self.not_peft else "LORA",
            "base_model_name_or_path": base,
            "auto_mapping": {**mapping, "unidecouple": asdict(self)},
            **({} if self.not_peft else lora),
        }


def is_peft(adapter: Path) -> bool:
    """Whether PEFT alone wrote the adapter's folder, so that it holds no record of ours.

    Raises:
        ValueError: it is no adapter's folder.
    """
    raw = read_json(adapter / CONFIG)
    mapping = raw.get("auto_mapping")
    return raw.get("peft_type") != OURS and not (isinstance(mapping, dict) and "unidecouple" in mapping)


def read_record(adapter: Path) -> tuple[AdapterRecord, str]:
    """The record of an adapter's folder, and its base's name.

    Raises:
        ValueError: there is none, or another program wrote it.
    """
    raw = read_json(adapter / CONFIG)
    ours = (raw.get("auto_mapping") or {}).get("unidecouple", {})
    missing = [field.name for field in fields(AdapterRecord) if field.name not in ours]
    if missing:
        raise ValueError(
            f"{adapter / CONFIG} lacks {', '.join(missing)}: it was not written by `unidecouple adapter save`, so there is no "
            "telling which checkpoint it belongs to"
        )
    record = AdapterRecord(**{field.name: ours[field.name] for field in fields(AdapterRecord)})
    return record, str(raw.get("base_model_name_or_path"))

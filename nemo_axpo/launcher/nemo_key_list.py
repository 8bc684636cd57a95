"""NeMo's keys as a list to read: what each sets here, which one value it may have, or that it does nothing."""

from __future__ import annotations

from nemo_axpo.config.key_list import KeyDoc, SectionDoc, yaml_text
from nemo_axpo.config.nemo_precision import FP8_KEYS
from nemo_axpo.launcher.key_tables import COMPUTED, COPIES, FIXED, REFUSED_SECTIONS, RENAMED, SECTIONS, WITHOUT_EFFECT


def nemo_key_docs() -> list[SectionDoc]:
    """Keys of a stage by what becomes of them. Their defaults are those of the keys that they set."""
    fixed = [_doc(key, f"{' or '.join(map(yaml_text, values))}: {reason}") for key, (values, reason) in FIXED.items()]
    return [
        SectionDoc("", "Keys that set one of ours", tuple(_doc(key, ", ".join(ours)) for key, ours in RENAMED.items())),
        SectionDoc("", "Keys that say something together with others", tuple(_doc(*item) for item in COMPUTED.items())),
        SectionDoc("", "Transformer Engine and FP8 (docs/models.md)", tuple(_doc(f"model.{key}", FP8_KEYS[key]) for key in FP8_KEYS)),
        SectionDoc("", "Sections of our config as they are", tuple(_doc(f"model.axpo.{name}.*", f"{name}.*") for name in SECTIONS)),
        SectionDoc("", "Keys with the one value that is true here", tuple(fixed)),
        SectionDoc("", "Keys that repeat another", tuple(_doc(key, original) for key, original in COPIES.items())),
        SectionDoc("", "Keys that do nothing", tuple(_doc(*item) for item in WITHOUT_EFFECT.items())),
        SectionDoc("", "Sections that are refused", tuple(_doc(*item) for item in REFUSED_SECTIONS.items())),
    ]  # fmt: skip


def _doc(key: str, meaning: str) -> KeyDoc:
    return KeyDoc(key, "", "", meaning)

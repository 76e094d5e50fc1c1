"""Names the licences of the pretrained models that a run starts from."""

from pathlib import Path

from index.bundle.gate import NOT_STATED
from training.backbones.items.packaged import is_packaged
from training.config.vlm_config import VlmConfig

_CARD = "README.md"
_OTHER = "other"
"""``license`` of a card whose licence the hub has no identifier for; ``license_name`` names it."""
_KNOWN = {
    "Qwen/Qwen2-VL-2B-Instruct": "apache-2.0",
    "Qwen/Qwen2-VL-7B-Instruct": "apache-2.0",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen-research",
    "Qwen/Qwen2.5-VL-7B-Instruct": "apache-2.0",
    "Qwen/Qwen3-VL-Embedding-2B": "apache-2.0",
    "Qwen/Qwen3-VL-Embedding-8B": "apache-2.0",
    "google/embeddinggemma-2": "apache-2.0",
    "google/siglip-base-patch16-224": "apache-2.0",
    "google/siglip2-base-patch16-224": "apache-2.0",
}
"""Hub id → what its page says; "qwen-research" allows research only."""


def licences(vlm: VlmConfig) -> list[str]:
    """Licences of the pretrained models of a run.

    A licence that ``vlm.licence`` states takes precedence. Otherwise it is the one of the model's card in a local
    directory, or of a known hub id.

    Args:
        vlm: of the run's configuration.

    Returns:
        Distinct and sorted, in lower case, :data:`NOT_STATED` for a model that states none; empty for a model made
        from scratch.
    """
    named = [vlm.towers.text_model, vlm.towers.image_model] if vlm.family == "towers" else [vlm.model]
    models = [name for name in named if name]
    if vlm.licence is not None:
        return [vlm.licence.strip().lower()] if models else []
    return sorted({_licence(name) for name in models})


def _licence(name: str) -> str:
    if is_packaged(name):  # the packages state no licence for the weights in them
        return NOT_STATED
    if Path(name).is_dir():
        return _of_card(Path(name) / _CARD)
    return _KNOWN.get(name, NOT_STATED)


def _of_card(path: Path) -> str:
    """``license`` of the YAML at the top of a model card, or ``license_name`` where it is another than the hub's."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return NOT_STATED
    if not lines or lines[0].strip() != "---":
        return NOT_STATED
    stated: dict[str, str] = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, _, value = line.partition(":")
        stated[key] = value.strip().strip("\"'").strip().lower()
    licence = stated.get("license") or NOT_STATED
    return stated.get("license_name") or licence if licence == _OTHER else licence

"""The aliases `challenger` and `champion`.

The alias is the truth, wherever it was moved. What this project did is history beside it, in tags:

- `last.challenger` and `last.champion` of the registered model: the version where the alias was last put, or seen.
  Where the alias is elsewhere now, or nowhere, a person moved it, in the MLflow UI or through the API.
- `promotion.at`, `.by`, `.reason`, `.forced`, `.replaced` of a version: how it became champion, the last time; earlier
  times in one line each: `promotion.1` is the first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from pipelines.tracking.runs import use_tracking_store

CHALLENGER, CHAMPION = "challenger", "champion"
PROMOTED = "promotion.at"


@dataclass(frozen=True)
class Alias:
    """Where an alias points to, and where it was last put or seen; None is nowhere."""

    version: str | None
    last: str | None

    @property
    def was_moved(self) -> bool:
        """Whether a person moved or deleted it since."""
        return self.last is not None and self.version != self.last


def find_alias(name: str, alias: str) -> Alias:
    """Return an alias of a registered model, which need not exist."""
    found = use_tracking_store().search_registered_models(f"name = '{name}'")
    if not found:
        return Alias(None, None)
    version = found[0].aliases.get(alias)  # on the model: search_model_versions returns none
    return Alias(None if version is None else str(version), found[0].tags.get(f"last.{alias}"))


def aliases_of(name: str, version: str) -> list[str]:
    """Return the aliases of a version, sorted."""
    aliases = use_tracking_store().get_registered_model(name).aliases
    return sorted(alias for alias, pointed in aliases.items() if str(pointed) == version)


def all_aliases() -> dict[str, dict[str, str]]:
    """Return {registered model: {alias: version}} of all models of this project in the store."""
    found = use_tracking_store().search_registered_models("name LIKE 'grpo-rm-%'", max_results=1000)
    return {model.name: {alias: str(version) for alias, version in model.aliases.items()} for model in found}


def set_challenger(name: str, version: str) -> None:
    """Move `challenger` to a version."""
    client = use_tracking_store()
    client.set_registered_model_alias(name, CHALLENGER, version)
    client.set_registered_model_tag(name, f"last.{CHALLENGER}", version)


def set_champion(name: str, version: str, *, replaced: str | None, by: str, reason: str, forced: bool = False) -> None:
    """Move `champion` to a version, and record on it who did and why."""
    use_tracking_store().set_registered_model_alias(name, CHAMPION, version)
    _record(name, version, replaced=replaced, by=by, reason=reason, forced=forced)


def see_champion(name: str) -> Alias:
    """Return the alias `champion`, and record on its version what a person did: nobody else remembers it."""
    champion = find_alias(name, CHAMPION)
    if champion.version is not None and champion.version != champion.last:
        reason = "the alias was moved outside of this project, before this time"
        _record(name, champion.version, replaced=champion.last, by="unknown", reason=reason, forced=False)
    return champion


def _record(name: str, version: str, *, replaced: str | None, by: str, reason: str, forced: bool) -> None:
    tags = {
        PROMOTED: datetime.now(UTC).isoformat(timespec="seconds"),
        "promotion.by": by,
        "promotion.reason": reason,
        "promotion.forced": str(forced).lower(),
        "promotion.replaced": replaced or "none",
    }
    client = use_tracking_store()
    before = client.get_model_version(name, version).tags
    if PROMOTED in before:
        tags[f"promotion.{_next_number(before)}"] = _in_words(before)
    for key, value in sorted(tags.items()):  # history first: an interruption loses nothing of it
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_tag(name, f"last.{CHAMPION}", version)


def _next_number(tags: Mapping[str, str]) -> int:
    numbers = [key.removeprefix("promotion.") for key in tags]
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=0)


def _in_words(tags: Mapping[str, str]) -> str:
    """Return one line of the tags of a promotion."""
    by, replaced, reason = (tags.get(f"promotion.{key}", "unknown") for key in ("by", "replaced", "reason"))
    how = "forced " if tags.get("promotion.forced") == "true" else ""
    return f"{tags[PROMOTED]}: {how}by {by}, in the place of version {replaced}: {reason}"

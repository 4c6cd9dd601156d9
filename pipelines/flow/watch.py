"""The flow `watch`: emits an event where the data or an alias differ from what it saw the last time."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed, Failed
from prefect.variables import Variable

from pipelines import changes, clone
from pipelines.flow.failures import fail_in_words, run_here
from pipelines.lineage import ROOT
from pipelines.tracking.aliases import all_aliases
from pipelines.tracking.registry import contact
from pipelines.tracking.runs import check_tracking, has_store

# the Prefect variable that holds what was seen, for each clone its own
SEEN = f"grpo_rm_watch_{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
Event = tuple[str, str, dict[str, str]]  # event, resource, payload


@flow(name="watch", persist_result=False)
def watch() -> State[Any]:
    """Look at the data (folder, DVC remote) and at the aliases in the registry, and emit what is new.

    Events: `grpo-rm.data.changed` of `grpo-rm.data.<source>`, and `grpo-rm.alias.changed` of `grpo-rm.model.<name>`.
    What is seen for the first time is remembered without an event.
    """
    fail_in_words()
    if not clone.is_free(ROOT):
        return Completed(message="a run works in the clone: looked at nothing")
    try:
        source, version = changes.data_version(ROOT)
        check_tracking()
        with contact():
            aliases = all_aliases() if has_store() else {}
    except (ValueError, OSError) as error:
        return Failed(message=str(error))
    seen = cast(dict[str, Any], Variable.get(SEEN, default={}))
    events = [*_data_events(source, version, seen), *_alias_events(aliases, seen)]
    # remembered first: an event that is lost is better than one that starts a run every ten minutes
    Variable.set(SEEN, {"data": {source: version}, "aliases": aliases}, overwrite=True)
    for event, resource, payload in events:
        get_run_logger().info("%s: %s %s", event, resource, payload)
        emit_event(event=event, resource={"prefect.resource.id": resource}, payload=payload)
    return Completed(message="; ".join(f"{event} {resource}" for event, resource, _ in events) or "nothing changed")


def _data_events(source: str, version: str, seen: dict[str, Any]) -> Iterator[Event]:
    before = seen.get("data", {}).get(source)
    if before not in (None, version):
        resource = f"grpo-rm.data.{re.sub(r'[^A-Za-z0-9._-]+', '-', source)}"
        yield "grpo-rm.data.changed", resource, {"source": source, "version": version}


def _alias_events(aliases: dict[str, dict[str, str]], seen: dict[str, Any]) -> Iterator[Event]:
    for name, now in aliases.items():
        before = seen.get("aliases", {}).get(name)
        for alias in sorted({*now, *before} if before is not None else ()):
            if now.get(alias) != before.get(alias):
                payload = {"alias": alias, "version": now.get(alias, ""), "before": before.get(alias, "")}
                yield "grpo-rm.alias.changed", f"grpo-rm.model.{name}", payload


if __name__ == "__main__":
    run_here(watch)

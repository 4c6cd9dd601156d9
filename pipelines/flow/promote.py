"""The flow `promote`: a version becomes champion after its checks, or by a person's decision with a reason."""

from typing import Any

from prefect import flow, runtime
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from pipelines.flow.failures import fail_in_words, run_here
from pipelines.promote import describe
from pipelines.promote import promote as promote_version


@flow(name="promote", persist_result=False)
def promote(
    version: str | int | None = None, name: str | None = None, force: bool = False, reason: str = ""
) -> State[Any]:
    """Make a version champion, if it is in the registry, its gate passed and its ONNX file passes its self-test.

    To roll back, promote an older version.

    Args:
        version: Default: the challenger.
        name: Of the registered model. Default: that of the last registration in this clone.
        force: Although the gate failed. The other checks hold for everyone.
        reason: Why; kept with the version, and required with `force`.
    """
    fail_in_words()
    by = f"flow run {runtime.flow_run.name}"
    try:
        number = None if version is None else str(version)
        promotion = promote_version(number, name=name, force=force, reason=reason, by=by)
        return Completed(message=describe(promotion))
    except (ValueError, OSError) as error:
        return Failed(message=str(error))


if __name__ == "__main__":
    run_here(promote)

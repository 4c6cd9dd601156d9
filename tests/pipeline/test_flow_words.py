"""What the flows say, without a server."""

import logging
import sys

import pytest

pytestmark = pytest.mark.pipeline


def test_a_commit_names_the_parameters_of_its_run():
    from pipelines.flow.pipeline import commit_message

    me = "flow run calm-owl (1)"
    assert commit_message("ran: params", {}, me) == "Pipeline ran: params\n\nStarted by flow run calm-owl (1)"
    message = commit_message("ran: params", {"finetune": {"epochs": 2}, "data.source": "folder:a b"}, me)
    assert message.splitlines() == [
        "Pipeline with finetune.epochs, data.source",
        "",
        "Pipeline ran: params",
        "",
        "finetune.epochs: 2",
        'data.source: "folder:a b"',
        "",
        "Started by flow run calm-owl (1)",
    ]
    many = {f"finetune.augmentation.setting{index}": index for index in range(9)}
    subject = commit_message("ran: params", many, me).splitlines()[0]
    assert subject == "Pipeline with finetune.augmentation.setting0, ..."


@pytest.mark.parametrize("version", [3, "3", None])
def test_a_version_to_promote_is_a_number_or_its_text(version):
    from pipelines.flow.promote import promote

    assert promote.validate_parameters({"version": version})["version"] == version
    kinds = promote.parameters.properties["version"]["anyOf"]
    assert {kind.get("type") for kind in kinds} >= {"string", "integer"}


@pytest.mark.parametrize(
    ("raised", "has_traceback"),
    [
        ("raise ConnectionError('no answer')", False),
        ("__import__('pipelines.dag').dag.select([], ['x'])", False),
        ("int('x')", True),
        ("raise KeyError('x')", True),
    ],
)
def test_a_traceback_is_for_what_nobody_expected(raised, has_traceback):
    from pipelines.flow.failures import fail_in_words

    fail_in_words()
    logger = logging.getLogger("prefect.task_runs")
    try:
        exec(raised)
    except Exception:
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 1, "it failed", (), sys.exc_info())
    assert logger.filter(record)
    assert ("Traceback" in logging.Formatter().format(record)) == has_traceback


def test_only_an_outage_is_tried_again():
    from prefect.states import Failed

    from pipelines.flow.pipeline import is_outage, pull_changes

    assert pull_changes.retry_condition_fn is is_outage
    assert is_outage(None, None, Failed(data=ConnectionError("no answer")))
    assert not is_outage(None, None, Failed(data=ValueError("a conflict")))

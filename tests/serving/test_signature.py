"""MLflow's signature: golden vectors made by MLflow's own code, and everything that is not one."""

import pytest

from serving.follower import Alias
from serving.webhook import is_about, is_genuine

NOW = 1795392000
BODY = (
    b'{"entity": "model_version_alias", "action": "created", "timestamp": "2026-11-23T00:00:00+00:00", '
    b'"data": {"name": "grpo-rm-digits", "alias": "champion", "version": "1"}}'
)
GENUINE = {
    "secret": "secret",
    "signature": "v1,Sa2gkcq4vjvUbUI0VzSBz2RQ/bKkUQhnkUR3qwq3O6U=",
    "delivery_id": "0f4b6e6a-8c1e-4d3c-9b5e-3f1f6a0c2d11",
    "timestamp": str(NOW),
    "now": NOW,
}


def test_golden():
    assert is_genuine(BODY, **GENUINE)
    assert is_genuine(
        "é".encode(),
        secret="pässwörd",
        signature="v1,1sigYqrGaVsJkmgbi9pjfgU2vTQmN4vV9SXtl1i5YUE=",
        delivery_id="x",
        timestamp=str(NOW),
        now=NOW,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"secret": "other"},
        {"secret": ""},
        {"delivery_id": "another"},
        {"timestamp": str(NOW + 1)},
        {"timestamp": f"{NOW} "},
        {"timestamp": "-1"},
        {"timestamp": "²"},
        {"timestamp": "9" * 5000},
        {"timestamp": ""},
        {"signature": ""},
        {"signature": "v1,"},
        {"signature": GENUINE["signature"].removeprefix("v1,")},
        {"signature": GENUINE["signature"].replace("v1,", "v2,")},
        {"signature": GENUINE["signature"][:-4] + "AAA="},
        {"signature": GENUINE["signature"] + ",v1"},
        {"signature": "v1,é"},
        {"now": NOW + 301},
        {"now": NOW - 301},
    ],
)
def test_what_is_not_genuine(change):
    assert not is_genuine(BODY, **GENUINE | change)


def test_a_changed_body_is_not_genuine():
    assert not is_genuine(BODY.replace(b'"1"', b'"2"'), **GENUINE)


@pytest.mark.parametrize("seconds", [-300, 300])
def test_clocks_may_differ_by_five_minutes(seconds):
    assert is_genuine(BODY, **GENUINE | {"now": NOW + seconds})


def test_which_events_are_ours():
    assert is_about(BODY, Alias("grpo-rm-digits", "champion"))
    assert is_about(BODY.replace(b"created", b"deleted"), Alias("grpo-rm-digits", "champion"))
    assert not is_about(BODY, Alias("grpo-rm-digits", "challenger"))
    assert not is_about(BODY, Alias("grpo-rm-flowers", "champion"))
    assert not is_about(BODY.replace(b"version_alias", b"version_tag"), Alias("grpo-rm-digits", "champion"))


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b"1", b"{}", b'{"entity": "model_version_alias"}', b"[" * 60_000]
)
def test_what_is_no_event(body):
    with pytest.raises(ValueError, match="no event of MLflow"):
        is_about(body, Alias("grpo-rm-digits", "champion"))

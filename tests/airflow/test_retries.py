from __future__ import annotations

import pytest
from airflow.sdk.definitions.retry_policy import RetryAction

from glm4v_ops import errors
from glm4v_ops.airflow.retries import TypedRetries


def every(kind: type[errors.Glm4vError]) -> list[type[errors.Glm4vError]]:
    return [kind, *(each for direct in kind.__subclasses__() for each in every(direct))]


@pytest.mark.parametrize("kind", every(errors.TerminalError))
def test_a_terminal_error_fails_at_once_and_says_why(kind: type[errors.Glm4vError]) -> None:
    decision = TypedRetries().evaluate(kind("it broke", remedy="mend it"), try_number=1, max_tries=3)
    assert decision.action is RetryAction.FAIL
    assert decision.reason is not None
    assert "it broke — mend it" in decision.reason


@pytest.mark.parametrize("kind", every(errors.TransientError))
def test_a_transient_error_is_retried_with_the_tasks_own_backoff(kind: type[errors.Glm4vError]) -> None:
    decision = TypedRetries().evaluate(kind("it was away"), try_number=1, max_tries=3)
    assert decision.action is RetryAction.RETRY
    assert decision.retry_delay is None
    assert decision.reason is not None
    assert "it was away" in decision.reason


@pytest.mark.parametrize("error", [errors.Cancelled("stopped"), ValueError("a bug"), SystemExit(1)])
def test_anything_else_is_retried_as_airflow_would(error: BaseException) -> None:
    assert TypedRetries().evaluate(error, try_number=1, max_tries=3).action is RetryAction.DEFAULT

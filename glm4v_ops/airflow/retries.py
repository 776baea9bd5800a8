"""Which failures are worth a second try: decided by the error's type alone, where `glm4v_ops.errors` says it.

A terminal error fails the task at once, a transient one is retried with the task's own backoff, anything else
(a bug, a stop from outside) is retried as Airflow would. Not asked when the process died: a killed task is always
retried. Cannot grant more tries than the task has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

from glm4v_ops.errors import TerminalError, TransientError

if TYPE_CHECKING:
    from airflow.sdk import Context


class TypedRetries(RetryPolicy):
    """`DAG(default_args={"retry_policy": TypedRetries()})`. The reason stands in the log and on the task instance."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        if isinstance(exception, TerminalError):
            return RetryDecision.fail(f"a person must change something first: {exception}")
        if isinstance(exception, TransientError):
            return RetryDecision.retry(reason=f"may work later: {exception}")
        return RetryDecision.default()

"""Waiting for a day's drop to be complete: a sensor that looks once, then waits in the triggerer, in no slot.

What complete means is `glm4v_ops.source.drop`'s to say. The trigger carries the connection's id and never its
secrets. A store or an Airflow that does not answer does not end the wait; a wrong setting does, and so does the
deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from airflow.sdk import BaseOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

from glm4v_ops.airflow.connections import STORE_CONN_ID, store_client
from glm4v_ops.airflow.partition import resolve_day
from glm4v_ops.errors import SettingsError, TerminalError, TransientError
from glm4v_ops.settings import S3Uri, Settings
from glm4v_ops.source import drop

#: Airflow's own deadline on the deferral comes this much after the trigger's: it must end the wait only when there
#: is no triggerer, because its message cannot say what was waited for.
_TRIGGERER_LOST = timedelta(minutes=15)


class DropTrigger(BaseTrigger):
    """Fires when the drop is complete, the deadline has passed, or waiting makes no sense any more.

    A whole listing is made only once the quiet period can be over; before that a look is one HEAD for the marker.
    """

    def __init__(
        self,
        *,
        prefix: str,
        day: str,
        marker: str,
        quiet_seconds: int,
        empty_seconds: int,
        deadline: str,
        poll_seconds: float,
        quiet_at: str,
        conn_id: str = STORE_CONN_ID,
    ) -> None:
        super().__init__()
        self.prefix = prefix
        self.day = day
        self.marker = marker
        self.quiet_seconds = quiet_seconds
        self.empty_seconds = empty_seconds
        self.deadline = deadline
        self.poll_seconds = poll_seconds
        self.quiet_at = quiet_at
        self.conn_id = conn_id
        self._client: Any = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("prefix", "day", "marker", "quiet_seconds", "empty_seconds", "deadline", "poll_seconds", "quiet_at")
        arguments = {name: getattr(self, name) for name in (*names, "conn_id")}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        deadline = datetime.fromisoformat(self.deadline)
        seen = "the store was not reached"
        quiet_at = datetime.fromisoformat(self.quiet_at)
        late = False
        # Looked at once more when the time is up: a triggerer may have been down until then.
        while not late:
            now = datetime.now(UTC)
            await asyncio.sleep(self._pause(now, quiet_at, deadline))
            late = datetime.now(UTC) >= deadline
            try:
                found = await asyncio.to_thread(self._look, quiet_at)
            except TransientError as error:
                self.log.warning("looking again in %g s: %s", self.poll_seconds, error)
                seen = str(error)
                continue
            except TerminalError as error:
                yield TriggerEvent({"status": "refused", "message": error.message, "remedy": error.remedy})
                return
            if found is None:
                continue
            seen, quiet_at = found.because, found.quiet_at
            self.log.info("%s", seen)
            if found.complete:
                yield TriggerEvent({"status": "complete", "message": seen, "remedy": ""})
                return
        remedy = f"write {self.marker} when the upload is complete, or find out who is still writing there"
        message = f"the drop of {self.day} was not complete by {deadline:%Y-%m-%d %H:%M} UTC: {seen}"
        yield TriggerEvent({"status": "late", "message": message, "remedy": remedy})

    def _pause(self, now: datetime, quiet_at: datetime, deadline: datetime) -> float:
        """Seconds to the next look: the poll interval, or less where the answer changes sooner."""
        moments = [deadline, *([quiet_at] if quiet_at > now else [])]
        return max(0.0, min(self.poll_seconds, *((moment - now).total_seconds() for moment in moments)))

    def _look(self, quiet_at: datetime) -> drop.Drop | None:
        """One look, in a thread; None when only the marker could have changed the answer and it is not there."""
        if self._client is None:
            self._client = store_client(self.conn_id)
        client = self._client
        prefix = S3Uri.parse(self.prefix, setting="GLM4V_SOURCE")
        now = datetime.now(UTC)
        if now < quiet_at and not drop.marker_stands(client, prefix, self.marker):
            return None
        return drop.look(
            client,
            prefix,
            date.fromisoformat(self.day),
            marker=self.marker,
            quiet_seconds=self.quiet_seconds,
            empty_seconds=self.empty_seconds,
            now=now,
        )


class WaitForDrop(BaseOperator):
    """Succeeds when the drop of the run's day is complete; returns the day.

    :param poll_seconds: between two looks at the store.
    :param patience: how long to wait before failing; the failure is transient, so a retry waits again.
    """

    ui_color = "#fdf3d0"

    def __init__(
        self,
        *,
        poll_seconds: float = 60,
        patience: timedelta = timedelta(hours=12),
        conn_id: str = STORE_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.poll_seconds = poll_seconds
        self.patience = patience
        self.conn_id = conn_id

    def execute(self, context: Context) -> str:
        day = resolve_day(context)
        settings = Settings.from_environment()
        prefix = settings.source_of(day)
        now = datetime.now(UTC)
        drop.require_ended(day, now=now)
        found = drop.look(
            store_client(self.conn_id),
            prefix,
            day,
            marker=settings.marker,
            quiet_seconds=settings.quiet_seconds,
            empty_seconds=settings.empty_seconds,
            now=now,
        )
        self.log.info("%s", found.because)
        if not found.complete:
            trigger = DropTrigger(
                prefix=str(prefix),
                day=day.isoformat(),
                marker=settings.marker,
                quiet_seconds=settings.quiet_seconds,
                empty_seconds=settings.empty_seconds,
                deadline=(now + self.patience).isoformat(),
                poll_seconds=self.poll_seconds,
                quiet_at=found.quiet_at.isoformat(),
                conn_id=self.conn_id,
            )
            self.defer(trigger=trigger, method_name="resume", timeout=self.patience + _TRIGGERER_LOST)
        return day.isoformat()

    def resume(self, context: Context, event: dict[str, str]) -> str:
        """Back from the triggerer."""
        if event["status"] == "refused":
            raise SettingsError(event["message"], remedy=event["remedy"])
        if event["status"] != "complete":
            raise TransientError(event["message"], remedy=event["remedy"])
        self.log.info("%s", event["message"])
        return resolve_day(context).isoformat()

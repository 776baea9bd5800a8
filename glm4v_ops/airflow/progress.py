"""Live progress of a running shard: the task's log, its map label, and its state store.

The work never waits for Airflow: a thread of its own shows the newest snapshot every few seconds, so that an API
server that is slow or away holds up the display and not the GPU. What cannot be shown is logged and let go; a
display is no reason to fail a task.

The label is sent while the task runs by the message that Airflow's own task runner sends for `map_index_template`
before and after `execute`; the template (`LABEL_TEMPLATE`) gives the same text at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import MutableMapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from airflow.sdk.exceptions import AirflowRuntimeError

from glm4v_ops.progress import Progress

log = logging.getLogger(__name__)

#: Seconds between two updates of label and state store: often enough to look alive, two small requests each.
SHOW_EVERY = 3.0
#: Seconds between two log lines: a shard of half an hour stays under 200.
LOG_EVERY = 10.0
#: The state store's key; REST and the UI's Storage tab show it.
STORE_KEY = "progress"
_LABEL = "shard_label"
#: For `map_index_template`: the shard's number until there is progress, the last label afterwards.
LABEL_TEMPLATE = (
    f"{{{{ {_LABEL} if {_LABEL} is defined else 'shard %d/%d' % (task.shard.shard + 1, task.shard.shards) }}}}"
)


class LiveProgress:
    """`with LiveProgress(context) as live: annotate_shard(…, progress=live.update)`."""

    def __init__(self, context: MutableMapping[str, Any]) -> None:
        self._context = context
        self._newest: Progress | None = None
        self._shown: Progress | None = None
        self._logged: Progress | None = None
        self._logged_at = float("-inf")
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, name="live-progress", daemon=True)

    def update(self, progress: Progress) -> None:
        """Take a snapshot; returns at once."""
        self._newest = progress

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        self._thread.join()
        self._show()
        self._log()

    def _run(self) -> None:
        while not self._leaving.wait(SHOW_EVERY):
            self._show()

    def _log(self) -> None:
        if self._shown is not None and self._shown is not self._logged:
            self._logged, self._logged_at = self._shown, time.monotonic()
            log.info("%s", self._shown.label())

    def _show(self) -> None:
        newest = self._newest
        if newest is None or newest is self._shown:
            return
        self._shown = newest
        if time.monotonic() - self._logged_at >= LOG_EVERY:
            self._log()
        self._context[_LABEL] = label = newest.label()
        try:
            send_label(label)
            self._context["task_state_store"].set(STORE_KEY, {**asdict(newest), "label": label})
        except AirflowRuntimeError as error:
            log.warning("progress could not be shown: %s", error)


def send_label(label: str) -> None:
    """Show `label` as the running task instance's map label. Does nothing outside Airflow's task runner."""
    from airflow.sdk.execution_time import task_runner
    from airflow.sdk.execution_time.comms import SetRenderedMapIndex

    comms = getattr(task_runner, "SUPERVISOR_COMMS", None)
    if comms is not None:
        comms.send(SetRenderedMapIndex(rendered_map_index=label))

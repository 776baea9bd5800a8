"""A small client of Airflow's public REST API (`/api/v2`), with the calls the demo needs.

Knows nothing of how Airflow was started; anything with a URL, a user and a password will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx

from glm4v_ops.errors import Glm4vError

#: How often a question is asked before it counts as not answered: on a busy machine one may take half a minute.
_TRIES = 3


class AirflowRefused(Glm4vError):
    """Airflow answered a request with an error, or not at all."""


class AirflowApi:
    """`AirflowApi(url, user, password).get("dags")`. Logs in on first use, and again when the token has expired."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._user = user
        self._password = password
        # trust_env=False: a proxy named in the environment must not be asked for 127.0.0.1.
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def health(self) -> dict[str, Any]:
        """What `/monitor/health` says; empty while nobody answers."""
        try:
            answer = self._http.get("/api/v2/monitor/health", timeout=5)
        except httpx.TransportError:
            return {}
        found: dict[str, Any] = answer.json() if answer.status_code == 200 else {}
        return found

    def get(self, path: str, **query: Any) -> Any:
        return self._ask("GET", path, params=query)

    def post(self, path: str, body: Any) -> Any:
        return self._ask("POST", path, json=body)

    def patch(self, path: str, body: Any) -> Any:
        return self._ask("PATCH", path, json=body)

    def every(self, path: str, field: str, **query: Any) -> Iterator[dict[str, Any]]:
        """All entries of a paged list."""
        offset = 0
        while True:
            page = self.get(path, limit=100, offset=offset, **query)
            yield from page[field]
            offset += len(page[field])
            if not page[field] or offset >= page["total_entries"]:
                return

    def keep(self, path: str, *entities: dict[str, Any]) -> None:
        """Create connections or pools, or overwrite those of the same name."""
        action = {"action": "create", "action_on_existence": "overwrite", "entities": list(entities)}
        errors = self.patch(path, {"actions": [action]}).get("create", {}).get("errors", [])
        if errors:
            raise AirflowRefused(f"Airflow did not take {path}: {errors}")

    def task_log(self, dag_id: str, run_id: str, task_id: str, map_index: int, try_number: int) -> list[str]:
        """The lines of one try's log, as the UI shows them."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        answer = self.get(path, map_index=map_index, full_content=True)
        return [_line(entry) for entry in answer["content"]]

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        if "Authorization" not in self._http.headers:
            self._log_in()
        answer = self._send(method, path, **options)
        if answer.status_code == 401:
            self._log_in()
            answer = self._send(method, path, **options)
        if answer.is_error:
            raise AirflowRefused(f"Airflow refused {method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer.json() if answer.content else None

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        for attempt in range(_TRIES):
            try:
                # A key may hold anything a run id may: httpx encodes what a path must not hold.
                return self._http.request(method, f"/api/v2/{path}", headers={"Accept": "application/json"}, **options)
            except httpx.TransportError as error:
                if method != "GET" or attempt == _TRIES - 1:  # what changes something may have been done
                    told = f"{type(error).__name__}: {error}"
                    raise AirflowRefused(f"Airflow at {self.url} did not answer {method} {path}: {told}") from error
        raise AssertionError("unreachable")

    def _log_in(self) -> None:
        answer = self._http.post("/auth/token", json={"username": self._user, "password": self._password})
        if answer.is_error:
            raise AirflowRefused(f"Airflow did not let {self._user} in: {answer.status_code}")
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


def _line(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    words = [str(entry[name]) for name in ("timestamp", "level", "event", "reason") if entry.get(name)]
    error = entry.get("error_detail") or []
    return " ".join([*words, *(f"{each.get('exc_type')}: {each.get('exc_value')}" for each in error)])

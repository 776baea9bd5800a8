"""The result cache: what the model already answered, by the image's content and what shapes the answer.

An answer is kept raw under (SHA-256 of the image's bytes, answer_id) and checked again on every use, so that a
better check needs no model. The first answer stays: storing a pair again changes nothing and gives back what stands,
so answers cannot differ between two runs that raced. Model faults are no answers and never come here. Infrastructure
faults raise `TablesUnavailable`; a lookup never pretends that nothing is known because the database is down.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import psycopg

from glm4v_ops.sink.connection import bound, connect, table_errors

#: (hex SHA-256 of the image's bytes, answer_id)
AnswerKey = tuple[str, str]
T = TypeVar("T")

#: PostgreSQL cannot store NUL in text. The checks call both characters broken, so the verdict stays the same.
STORED_NUL = "\ufffd"

_LOOKUP = """
SELECT encode(sha256, 'hex'), answer_id, answer, finish_reason, tokens_in, tokens_out
FROM answers JOIN unnest(%s::bytea[], %s::text[]) AS wanted (sha256, answer_id) USING (sha256, answer_id)
"""
_STORE = """
INSERT INTO answers (sha256, answer_id, answer, finish_reason, tokens_in, tokens_out)
SELECT * FROM unnest(%s::bytea[], %s::text[], %s::text[], %s::text[], %s::int[], %s::int[])
ON CONFLICT DO NOTHING
"""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """One raw answer as the model gave it."""

    text: str
    finish_reason: str  # "stop" or "length"
    tokens_in: int
    tokens_out: int


class Cache(Protocol):
    """What `annotate` needs of a cache."""

    def lookup(self, keys: Iterable[AnswerKey]) -> dict[AnswerKey, CachedAnswer]: ...

    def store(self, answers: Mapping[AnswerKey, CachedAnswer]) -> dict[AnswerKey, CachedAnswer]: ...

    def close(self) -> None: ...


class NoCache:
    """Knows nothing and keeps nothing: for the command line, which has no database."""

    def lookup(self, keys: Iterable[AnswerKey]) -> dict[AnswerKey, CachedAnswer]:
        return {}

    def store(self, answers: Mapping[AnswerKey, CachedAnswer]) -> dict[AnswerKey, CachedAnswer]:
        return dict(answers)

    def close(self) -> None:
        return None


class AnswerCache:
    """The cache in the table `answers`. One connection, made on first use and again after a loss; thread-safe."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def lookup(self, keys: Iterable[AnswerKey]) -> dict[AnswerKey, CachedAnswer]:
        """The known ones among `keys`, in one query. Raises `TablesUnavailable`."""
        wanted = sorted(set(keys))
        if not wanted:
            return {}
        digests = [bytes.fromhex(sha256) for sha256, _ in wanted]
        ids = [answer_id for _, answer_id in wanted]
        rows = self._with_connection(lambda c: c.execute(_LOOKUP, (digests, ids)).fetchall())
        return {(sha256, answer_id): CachedAnswer(*answer) for sha256, answer_id, *answer in rows}

    def store(self, answers: Mapping[AnswerKey, CachedAnswer]) -> dict[AnswerKey, CachedAnswer]:
        """Keep those not known yet, in one statement; all of them as they stand then. Raises `TablesUnavailable`."""
        if not answers:
            return {}
        # Sorted: two workers that store overlapping batches must take the rows in one order, or they deadlock.
        items = sorted(answers.items())
        columns = (
            [bytes.fromhex(sha256) for (sha256, _), _ in items],
            [answer_id for (_, answer_id), _ in items],
            [answer.text.replace("\x00", STORED_NUL) for _, answer in items],
            [answer.finish_reason for _, answer in items],
            [answer.tokens_in for _, answer in items],
            [answer.tokens_out for _, answer in items],
        )
        self._with_connection(lambda c: c.execute(_STORE, columns))
        return self.lookup(answers)

    def close(self) -> None:
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _with_connection(self, call: Callable[[psycopg.Connection[tuple[Any, ...]]], T]) -> T:
        """Run `call`, once more on a new connection when the old one was lost: both calls may be repeated."""
        with self._lock, table_errors(self._dsn):
            if self._connection is not None:
                try:
                    return call(self._connection)
                except psycopg.OperationalError:
                    if not self._connection.broken:
                        raise
                    self._drop()
            connection = connect(self._dsn, purpose="cache", autocommit=True)
            bound(connection, local=False)
            self._connection = connection
            return call(connection)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

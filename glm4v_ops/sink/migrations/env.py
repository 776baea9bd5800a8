"""What Alembic runs for each command: on the connection `glm4v_ops.sink.postgres` hands it, in its transaction.

Only our own tables are looked at: the database may hold others, Airflow's among them, and the partitions of ours.
"""

from __future__ import annotations

from typing import Any

from alembic import context

from glm4v_ops.sink.schema import VERSION_TABLE, metadata


def _ours(name: str | None, kind: str, parents: Any) -> bool:
    return kind != "table" or name in metadata.tables


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    include_name=_ours,
    compare_type=True,
    compare_server_default=True,
)
context.run_migrations()

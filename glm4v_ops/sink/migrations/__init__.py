"""Alembic migrations of the tables; run them with `glm4v_ops.sink.postgres.migrate`."""

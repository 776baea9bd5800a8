"""The assets, each defined once: two definitions of one name or URI make Airflow refuse to start the task.

Only the publish task may have `ANNOTATIONS` as its outlet: a mapped task would send an event a shard.
The URI names the tables by the Airflow connection that leads to them, so it holds no host and no secret.
"""

from __future__ import annotations

from airflow.sdk import Asset

#: The checked rows of a day, in `annotations` and `quarantine`. Its events carry the day as partition key, and counts.
ANNOTATIONS = Asset(name="annotations", uri="x-glm4v://glm4v_tables/annotations", group="glm4v")

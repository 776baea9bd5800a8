"""Two small DAGs partitioned by day, to try the stack and the following of runs without the pipeline."""

import os

import pendulum
from airflow.sdk import DAG, BaseHook, CronPartitionTimetable, get_current_context, task


def _daily() -> CronPartitionTimetable:
    return CronPartitionTimetable("0 0 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d")


with DAG("tiny", schedule=_daily(), start_date=pendulum.datetime(2024, 1, 1), catchup=False, max_active_runs=2):

    @task
    def look() -> dict[str, str | None]:
        """What a task finds: the connections, the settings, and none of the keys."""
        store, tables = BaseHook.get_connection("glm4v_store"), BaseHook.get_connection("glm4v_tables")
        return {
            "endpoint": store.extra_dejson["endpoint_url"],
            "login": store.login,
            "schema": tables.schema,
            "source": os.environ.get("GLM4V_SOURCE"),
            "keys_in_environment": os.environ.get("AWS_SECRET_ACCESS_KEY", os.environ.get("GLM4V_DSN")),
        }

    @task(pool="gpu", map_index_template="{{ label }}")
    def work(number: int) -> int:
        get_current_context()["label"] = f"piece {number}"
        return number

    look() >> work.expand(number=[1, 2])

with DAG("tiny_failing", schedule=_daily(), start_date=pendulum.datetime(2024, 1, 1), catchup=False):

    @task
    def fail() -> None:
        raise ValueError("the cupboard is bare")

    fail()

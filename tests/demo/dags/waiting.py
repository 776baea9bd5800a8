"""The wait of `nightly_annotation` alone, looking every second: to try it in a real triggerer."""

import pendulum
from airflow.sdk import DAG, CronPartitionTimetable

from glm4v_ops.airflow.sensors import WaitForDrop

with DAG(
    "waiting",
    schedule=CronPartitionTimetable("0 0 * * *", timezone="UTC", run_offset=-1, key_format="%Y-%m-%d"),
    start_date=pendulum.datetime(2024, 1, 1),
    catchup=False,
    is_paused_upon_creation=False,
):
    WaitForDrop(task_id="wait_for_drop", poll_seconds=1)

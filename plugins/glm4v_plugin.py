"""Registers `glm4v_ops.airflow` with Airflow.

Nothing needs registering yet: operators, sensors and the trigger are found by import. Priorities, links and pages
will be named here. Airflow executes every file in this folder in every component, so this one stays light.
"""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class Glm4vPlugin(AirflowPlugin):
    name = "glm4v"

"""An Airflow of no consequence for tests that only import it: importing this module before Airflow sets it up.

Without it, Airflow would write its configuration into the developer's home folder.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_HOME = tempfile.TemporaryDirectory(prefix="glm4v-airflow-home-")

ENVIRON = {
    "AIRFLOW_HOME": _HOME.name,
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
}
os.environ.update(ENVIRON)

"""The whole stack on one machine: object store, PostgreSQL and Airflow, each a process of its own.

    python -m demo.stack [--state DIR]     start, print address, user and password, stay until Ctrl-C

Promises: everything listens on 127.0.0.1, on free ports; everything it keeps is in the state folder (secrets with
mode 600); a second start finds the data of the first; two starts at once on one folder do not meet, the second says
which one is running; when this process ends, in any way, everything it started ends too. A part that dies is
reported with the end of its log.

Airflow runs as its four components, not as `airflow standalone`, whose children outlive a SIGTERM. It has the pool
`gpu` (a slot a core, at most four: here the model runs on the CPU), the connections `glm4v_store` and `glm4v_tables`,
and its metadata in the same PostgreSQL as the tables, in a database of its own. It is a laptop's Airflow: one admin, no
TLS, the store's internal ports open to every user of this machine.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from demo.airflow_api import AirflowApi
from demo.parts import ObjectStore, Postgres, postgres_programs
from demo.process import HOST, Kept, PartFailed, clear_leftovers, free_ports, is_free, write_private
from glm4v_ops.errors import Glm4vError

ROOT = Path(__file__).resolve().parent.parent
USER = "admin"
SOURCE = "s3://drop/images/{day}/"
WORK = "s3://work/glm4v"
#: Shards annotated at a time. Two processes of one thread do nearly twice what one of two threads does: the model is
#: too small to gain from a second thread.
SLOTS = max(1, min(4, os.cpu_count() or 1))
_THREADS = str(max(1, (os.cpu_count() or 1) // SLOTS))
#: Stopped in this order, all but the api-server at once: tasks report their end to it.
_COMPONENTS = ("scheduler", "dag-processor", "triggerer")
#: Seconds for the slowest machine we know of; a laptop needs about 20.
_START_SECONDS = 240


class AlreadyRunning(Glm4vError):
    """Another process runs a stack on this state folder."""


class Stack:
    """A running stack: `with Stack.start(Path(".demo")) as stack: stack.api.get("dags")`."""

    def __init__(self, state: Path, lock: IO[str], say: Callable[[str], None]) -> None:
        self.state = state
        self.airflow_home = state / "airflow"
        self.parts: dict[str, Kept] = {}
        self._lock = lock
        self._say = say
        self.store: ObjectStore
        self.postgres: Postgres
        self.api: AirflowApi
        self.dsn: str
        self.url: str
        self.password: str
        self._airflow_environ: dict[str, str]
        self._settings: dict[str, str]

    @classmethod
    def start(
        cls,
        state: Path,
        *,
        dags: Path = ROOT / "dags",
        plugins: Path = ROOT / "plugins",
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> Self:
        """Start everything and wait until it is ready. `settings` are further variables for every Airflow process,
        `port` is Airflow's, 0 for any; without it 8080 if nobody has that, else any.

        Raises `AlreadyRunning`, or `PartFailed` naming the part, its log's end and a remedy.
        """
        state.mkdir(parents=True, exist_ok=True)
        state = state.resolve()
        stack = cls(state, _lock(state), say)
        try:
            stack._start_servers()
            if port is None:
                port = 8080 if is_free(8080) else 0
            stack._configure(dags, plugins, dict(settings or {}), port or free_ports(1)[0])
            stack._prepare()
            stack._start_airflow()
            stack._introduce()
        except BaseException:
            stack.stop()
            raise
        return stack

    def _start_servers(self) -> None:
        self.airflow_home.mkdir(exist_ok=True)
        clear_leftovers(self.airflow_home)
        self.store = ObjectStore.start(self.state / "store")
        self.parts["store"] = self.store.process
        self._say(f"object store   {self.store.endpoint}")
        self.postgres = Postgres.start(self.state / "postgres", say=self._say)
        self.parts["postgres"] = self.postgres.process
        self._say(f"PostgreSQL     {HOST}:{self.postgres.port}")

    def _configure(self, dags: Path, plugins: Path, settings: dict[str, str], port: int) -> None:
        kept = _kept_secrets(self.airflow_home)
        self.password = kept["password"]
        self.url = f"http://{HOST}:{port}"
        self.dsn = self.postgres.database("glm4v")
        self.postgres.database("airflow")
        self.api = AirflowApi(self.url, USER, self.password)
        self._settings = {
            "GLM4V_SOURCE": SOURCE,
            "GLM4V_WORK": WORK,
            "GLM4V_RECIPE": str(ROOT / "recipes" / "demo.yaml"),
            **settings,
        }
        self._airflow_environ = {
            "AIRFLOW_HOME": str(self.airflow_home),
            "AIRFLOW__API__BASE_URL": self.url,
            "AIRFLOW__API__HOST": HOST,
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__SECRET_KEY": kept["secret_key"],
            "AIRFLOW__API_AUTH__JWT_SECRET": kept["jwt_secret"],
            "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
            # Airflow's own first pause is five to ten minutes; here nobody waits that long for a try after a stop.
            "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "5",
            "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
            "AIRFLOW__CORE__FERNET_KEY": kept["fernet_key"],
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__PARALLELISM": str(SLOTS + 3),
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(plugins),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(self.airflow_home / "passwords.json"),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
            "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "15",
            # A file that changed is read at once all the same; reading the others every half minute takes a tenth of a
            # laptop.
            "AIRFLOW__DAG_PROCESSOR__FILE_PARSING_SORT_MODE": "modified_time",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.postgres.sqlalchemy_url("airflow"),
            "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
            # A task that was cut off with the whole stack is given up, and tried again, soon after the next start.
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "60",
            # The default of 3 kills a task after two minutes without the api-server.
            "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "20",
            "PYTHONPATH": str(ROOT),
        }
        write_private(self.airflow_home / "passwords.json", json.dumps({USER: self.password}))

    def _prepare(self) -> None:
        """Buckets, and both schemas; the two slow ones at the same time."""
        from glm4v_ops.sink import postgres as tables

        for bucket in ("drop", "work"):
            self.store.bucket(bucket)
        with ThreadPoolExecutor(1) as pool:
            airflow = pool.submit(self._migrate_airflow)
            tables.migrate(self.dsn)
            airflow.result()

    def _migrate_airflow(self) -> None:
        """`airflow db migrate`, left out when this folder's database was migrated by this same version of Airflow."""
        from importlib.metadata import version

        done = self.airflow_home / "migrated"
        if done.exists() and done.read_text(encoding="utf-8") == version("apache-airflow-core"):
            return
        self._say("Airflow        setting up its database")
        finished = self.airflow("db", "migrate")
        if finished.returncode:
            raise PartFailed(
                f"airflow db migrate failed:\n{finished.stderr[-3000:]}",
                remedy=f"if another Airflow wrote {self.state}, move it away",
            )
        done.write_text(version("apache-airflow-core"), encoding="utf-8")

    def _start_airflow(self) -> None:
        started = datetime.now(UTC)
        # Their log servers would listen on every address; the api-server reads the same files from this disk.
        for name, *options in (["api-server"], *([each] for each in _COMPONENTS)):
            if name in ("scheduler", "triggerer"):
                options.append("--skip-serve-logs")
            self.parts[name] = Kept(
                name,
                [sys.executable, "-m", "airflow", name, *options],
                folder=self.airflow_home,
                environ=self.airflow_process_environ(),
                # A task told to stop needs five seconds; what it finished is safe in any case.
                grace=8,
            )
        self._say(f"Airflow        starting on {self.url}")
        self.parts["api-server"].wait_until(
            lambda: self._ready(started), seconds=_START_SECONDS, remedy=f"read the logs in {self.airflow_home}"
        )

    def _ready(self, started: datetime) -> bool:
        self.check()
        health = self.api.health()
        if health.get("metadatabase", {}).get("status") != "healthy":
            return False
        # A component of the last start still counts as healthy for half a minute after it was stopped.
        beats = (
            health.get(name.replace("-", "_"), {}).get(f"latest_{name.replace('-', '_')}_heartbeat")
            for name in _COMPONENTS
        )
        return all(beat and datetime.fromisoformat(beat) >= started for beat in beats)

    def _introduce(self) -> None:
        """Tell Airflow of the pool and the connections, and write the file that tells a shell of everything."""
        says = "one slot a GPU; in the demo, where the model runs on the CPU, one a core"
        self.api.keep("pools", {"name": "gpu", "slots": SLOTS, "description": says, "include_deferred": False})
        self.api.keep("connections", *self.connections())
        write_private(self.state / "env", _exports(self.environ()))

    def connections(self) -> list[dict[str, Any]]:
        """The two connections the DAG uses, as Airflow's API takes them."""
        store = {
            "connection_id": "glm4v_store",
            "conn_type": "aws",
            "description": "object storage: the image drop and the work area",
            "login": self.store.access_key,
            "password": self.store.secret_key,
            "extra": json.dumps({"endpoint_url": self.store.endpoint, "region_name": "us-east-1"}),
        }
        tables = {
            "connection_id": "glm4v_tables",
            "conn_type": "postgres",
            "description": "the tables: annotations, quarantine, runs, recipes",
            "host": HOST,
            "port": self.postgres.port,
            "login": Postgres.USER,
            "password": self.postgres.password,
            "schema": "glm4v",
        }
        return [store, tables]

    def environ(self) -> dict[str, str]:
        """What a shell needs to reach every part."""
        return {
            **self.store.environ(),
            **self._settings,
            **self._airflow_environ,
            **_no_proxy(),
            "GLM4V_DSN": self.dsn,
            "AIRFLOW_URL": self.url,
            "AIRFLOW_USER": USER,
            "AIRFLOW_PASSWORD": self.password,
        }

    def airflow_process_environ(self) -> dict[str, str]:
        """For Airflow's own processes: nothing of the caller's Airflow, store or tables, and no keys of ours.

        Tasks find store and tables by Airflow's connections, as they do in production.
        """
        outside = {n: v for n, v in os.environ.items() if not n.startswith(("AIRFLOW", "GLM4V_", "AWS_", "PYTHON"))}
        # Airflow sets process titles, by default over the environment by which `kept_processes` knows its own.
        own = {"OMP_NUM_THREADS": _THREADS, "SPT_NOENV": "1", "PYTHONUNBUFFERED": "1"}
        return {**own, **outside, **_no_proxy(), **self._settings, **self._airflow_environ}

    def airflow(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an `airflow` command against this stack."""
        return subprocess.run(
            [sys.executable, "-m", "airflow", *arguments],
            env=self.airflow_process_environ(),
            cwd=self.airflow_home,
            capture_output=True,
            text=True,
            check=False,
        )

    def check(self) -> None:
        """Raises `PartFailed` when a part has died."""
        for part in self.parts.values():
            part.check(remedy=f"the whole log is {part.log}; start again, or `make clean` for an empty start")

    def stop(self) -> None:
        """Stop everything, in order, and wait until it is gone. May be called again."""
        for names in (_COMPONENTS, ("api-server",), ("postgres", "store")):
            parts = [self.parts.pop(name) for name in names if name in self.parts]
            for part in parts:
                part.ask_to_stop()
            for part in parts:
                part.stop()
        if hasattr(self, "store"):
            self.store.stop()
        if hasattr(self, "api"):
            self.api.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def _lock(state: Path) -> IO[str]:
    """Hold the folder for ourselves until this process ends. Raises `AlreadyRunning` naming who holds it."""
    file = (state / "lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "a process that has just begun"
        file.close()
        raise AlreadyRunning(
            f"a stack is already running on {state}: {holder}",
            remedy="use it, stop it with Ctrl-C where it was started, or name another folder with STATE=",
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()}, since {datetime.now().isoformat(' ', 'seconds')}")
    file.flush()
    return file


def _kept_secrets(home: Path) -> dict[str, str]:
    """Airflow's secrets, made up on the first start and kept, since what it stores is encrypted with them."""
    from cryptography.fernet import Fernet

    path = home / "keys.json"
    if not path.exists():
        made = {
            "fernet_key": Fernet.generate_key().decode(),
            "jwt_secret": secrets.token_urlsafe(48),
            "secret_key": secrets.token_urlsafe(32),
            "password": secrets.token_urlsafe(12),
        }
        write_private(path, json.dumps(made))
    kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def _no_proxy() -> dict[str, str]:
    """A proxy named in the environment must not be asked for what is on this machine."""
    names = ",".join(filter(None, [os.environ.get("no_proxy", os.environ.get("NO_PROXY")), HOST, "localhost"]))
    return {"NO_PROXY": names, "no_proxy": names}


def _exports(variables: Mapping[str, str]) -> str:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    scripts = shlex.quote(sysconfig.get_path("scripts"))
    # For psql, and last: a shell that has one keeps it.
    postgres = shlex.quote(str(postgres_programs()))
    path = f'export PATH={scripts}:"$PATH":{postgres}'
    return "\n".join(["# Written by the demo stack: `. this-file` in a shell.", *lines, path, ""])


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: through `finally` and `with`.

    The first of them alone: a second Ctrl-C would leave the stop half done.
    """
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

    def end(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        print("stopping: up to half a minute", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, end)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m demo.stack", description="Run the whole stack until Ctrl-C.")
    parser.add_argument("--state", type=Path, default=Path(".demo"), help="folder for everything it keeps")
    options = parser.parse_args(arguments)
    stop_on_signals()
    began = time.monotonic()
    try:
        with Stack.start(options.state, say=lambda line: print(line, flush=True)) as stack:
            print(f"ready after {time.monotonic() - began:.0f} s\n")
            print(f"  Airflow   {stack.url}\n  user      {USER}\n  password  {stack.password}\n")
            print(
                f"  for a shell:  . {shlex.quote(os.path.relpath(stack.state / 'env'))}\n\nCtrl-C stops it.", flush=True
            )
            while True:
                stack.check()
                time.sleep(1)
    except KeyboardInterrupt:
        print("stopped")
        return 0
    except Glm4vError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

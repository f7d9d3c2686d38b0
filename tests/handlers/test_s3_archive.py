import gzip
import json
import sys

import pytest
from botocore.session import get_session

from handlers import s3_archive

SQS = {
    "eventSource": "aws:sqs",
    "messageId": "m-1",
    "body": "é",
    "attributes": {"SentTimestamp": "1767225600000"},
}
KINESIS = {
    "eventSource": "aws:kinesis",
    "kinesis": {"sequenceNumber": "495", "approximateArrivalTimestamp": 1767225600.5},
}
DYNAMODB = {
    "eventSource": "aws:dynamodb",
    "dynamodb": {"SequenceNumber": "111", "ApproximateCreationDateTime": 1767225600},
}


@pytest.fixture
def bucket(emulator, monkeypatch):
    """An empty bucket, read with a client of its own."""
    s3 = get_session().create_client("s3", endpoint_url=emulator.endpoint_url)
    s3.create_bucket(Bucket="archive", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    monkeypatch.setenv("ARCHIVE_BUCKET", "archive")
    monkeypatch.setenv("ARCHIVE_PREFIX", "orders/")
    monkeypatch.setenv("ARCHIVE_ENDPOINT_URL", emulator.endpoint_url)
    s3_archive._s3.cache_clear()
    yield s3
    for entry in s3.list_objects_v2(Bucket="archive").get("Contents", []):
        s3.delete_object(Bucket="archive", Key=entry["Key"])
    s3.delete_bucket(Bucket="archive")
    s3.close()


@pytest.mark.slow
def test_a_batch_is_one_object_and_its_repeat_replaces_it(bucket):
    last = {**SQS, "messageId": "m-2"}
    for _ in range(2):
        assert s3_archive.handler({"Records": [SQS, last]}, None) == {"batchItemFailures": []}

    keys = [entry["Key"] for entry in bucket.list_objects_v2(Bucket="archive")["Contents"]]
    assert keys == ["orders/2026/01/01/00/m-1-m-2-2.jsonl.gz"]
    body = bucket.get_object(Bucket="archive", Key=keys[0])["Body"].read()
    assert [json.loads(line) for line in gzip.decompress(body).splitlines()] == [SQS, last]


@pytest.mark.parametrize(
    ("records", "key"),
    [
        ([SQS], "a/2026/01/01/00/m-1-m-1-1.jsonl.gz"),
        ([KINESIS, SQS], "a/2026/01/01/00/495-m-1-2.jsonl.gz"),
        ([DYNAMODB, DYNAMODB], "a/2026/01/01/00/111-111-2.jsonl.gz"),
    ],
)
def test_the_key_is_made_of_the_batchs_own_time_and_ids(records, key):
    assert s3_archive.key_of(records, "/a/") == key
    assert s3_archive.key_of(records, "") == key.removeprefix("a/")


def test_a_missing_bucket_name_fails_the_batch(monkeypatch):
    monkeypatch.delenv("ARCHIVE_BUCKET", raising=False)

    with pytest.raises(ValueError, match="ARCHIVE_BUCKET must be set"):
        s3_archive.handler({"Records": [SQS]}, None)


def test_boto3_is_used_where_it_is_installed(monkeypatch):
    class Session:
        def client(self, service, endpoint_url):
            return f"boto3 {service} at {endpoint_url}"

    module = type(sys)("boto3.session")
    module.Session = Session
    monkeypatch.setitem(sys.modules, "boto3", type(sys)("boto3"))
    monkeypatch.setitem(sys.modules, "boto3.session", module)
    s3_archive._s3.cache_clear()

    assert s3_archive._s3("http://there") == "boto3 s3 at http://there"
    s3_archive._s3.cache_clear()


def test_botocore_is_used_where_boto3_is_missing(monkeypatch):
    for name, value in (("AWS_DEFAULT_REGION", "eu-west-1"), ("AWS_ENDPOINT_URL", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "boto3.session", None)
    s3_archive._s3.cache_clear()
    client = s3_archive._s3("http://127.0.0.1:1")

    assert client.meta.endpoint_url == "http://127.0.0.1:1"
    client.close()
    s3_archive._s3.cache_clear()

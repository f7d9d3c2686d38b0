import base64
import json
import logging

from handlers import echo

SQS = {"eventSource": "aws:sqs", "messageId": "m-1", "body": "hello"}
KINESIS = {
    "eventSource": "aws:kinesis",
    "kinesis": {"sequenceNumber": "495", "data": base64.b64encode(b"caf\xc3\xa9 \xff").decode()},
}
DYNAMODB = {
    "eventSource": "aws:dynamodb",
    "eventName": "REMOVE",
    "dynamodb": {"SequenceNumber": "111", "Keys": {"Id": {"N": "1"}}, "SizeBytes": 3},
}


def test_every_record_of_every_source_is_logged_and_none_fails(caplog):
    with caplog.at_level(logging.INFO):
        reply = echo.handler({"Records": [SQS, KINESIS, DYNAMODB]}, None)

    assert json.dumps(reply) == '{"batchItemFailures": []}'
    assert caplog.messages == [
        "aws:sqs m-1 hello",
        "aws:kinesis 495 café \\xff",
        'aws:dynamodb 111 REMOVE {"Keys": {"Id": {"N": "1"}}}',
    ]

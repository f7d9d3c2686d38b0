"""A handler as Powertools' manual writes it, one for each source; a record whose content says "bad" fails."""

import json

from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    SqsFifoPartialProcessor,
    process_partial_response,
)

fifo = SqsFifoPartialProcessor()
kinesis = BatchProcessor(event_type=EventType.KinesisDataStreams)
dynamodb = BatchProcessor(event_type=EventType.DynamoDBStreams)


def check(content):
    if content == "bad":
        raise ValueError("a bad record")


def of_queue(record):
    check(record.body)


def of_stream(record):
    check(json.loads(record.kinesis.data_as_text())["state"])


def of_table(record):
    check(record.dynamodb.new_image["state"])


def fifo_handler(event, context):
    return process_partial_response(event, of_queue, fifo, context)


def kinesis_handler(event, context):
    return process_partial_response(event, of_stream, kinesis, context)


def dynamodb_handler(event, context):
    return process_partial_response(event, of_table, dynamodb, context)

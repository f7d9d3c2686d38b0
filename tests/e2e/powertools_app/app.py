"""Handlers as Powertools' manual shows them, with nothing in them that knows of poller."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    SqsFifoPartialProcessor,
    process_partial_response,
)

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.data_classes.dynamo_db_stream_event import DynamoDBRecord
    from aws_lambda_powertools.utilities.data_classes.kinesis_stream_event import KinesisStreamRecord
    from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
    from aws_lambda_powertools.utilities.typing import LambdaContext

fifo = SqsFifoPartialProcessor()
fifo_groups = SqsFifoPartialProcessor(skip_group_on_error=True)
kinesis = BatchProcessor(event_type=EventType.KinesisDataStreams)
dynamodb = BatchProcessor(event_type=EventType.DynamoDBStreams)


def work(text: str) -> None:
    """Do what there is to do; what ends in ! works at the third try only."""
    ledger = Path(os.environ["LEDGER"])
    failed = text.endswith("!") and ledger.read_text().splitlines().count(f"failed {text}") < 2
    with ledger.open("a") as file:
        file.write(f"{'failed' if failed else 'done'} {text}\n")
    if failed:
        raise ValueError(text)


def of_message(record: SQSRecord) -> None:
    """Process one message."""
    work(record.body)


def of_kinesis(record: KinesisStreamRecord) -> None:
    """Process one record of a data stream."""
    work(record.kinesis.data_as_text())


def of_dynamodb(record: DynamoDBRecord) -> None:
    """Process one change of a table."""
    assert record.dynamodb is not None
    work(record.dynamodb.keys["id"])


def fifo_handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Stop at the first message that fails."""
    return process_partial_response(event=event, record_handler=of_message, processor=fifo, context=context)


def fifo_groups_handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Stop a group at its first message that fails."""
    return process_partial_response(
        event=event, record_handler=of_message, processor=fifo_groups, context=context
    )


def kinesis_handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Process a batch of a data stream."""
    return process_partial_response(
        event=event, record_handler=of_kinesis, processor=kinesis, context=context
    )


def dynamodb_handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Process a batch of a table's changes."""
    return process_partial_response(
        event=event, record_handler=of_dynamodb, processor=dynamodb, context=context
    )

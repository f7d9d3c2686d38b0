// A function in Node, as it would be written for Lambda.
export async function handler(event, context) {
  console.log(`${context.awsRequestId} has ${event.Records.length} records`);
  return { records: event.Records.length };
}

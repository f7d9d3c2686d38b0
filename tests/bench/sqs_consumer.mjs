// sqs-consumer as its README has it, ten of them on one client: batches of ten, an async handler that touches every body.
// Arguments: endpoint, seconds of warm-up, seconds. Prints one JSON object, like tests.bench.loops.

import { SQSClient } from "@aws-sdk/client-sqs";
import { Consumer } from "sqs-consumer";

const [endpoint, warmUp, seconds] = process.argv.slice(2);
const sqs = new SQSClient({
  region: "eu-west-1",
  endpoint,
  credentials: { accessKeyId: "bench", secretAccessKey: "bench" },
});
let messages = 0;

const consumers = Array.from({ length: 10 }, () =>
  Consumer.create({
    queueUrl: `${endpoint}/123456789012/busy`,
    sqs,
    batchSize: 10,
    waitTimeSeconds: 20,
    attributeNames: ["All"],
    messageAttributeNames: ["All"],
    handleMessageBatch: async (batch) => {
      for (const message of batch) message.Body.length;
      return batch;
    },
  }),
);
for (const consumer of consumers) {
  consumer.on("response_processed", () => (messages += 10));
  for (const trouble of ["error", "processing_error"]) {
    consumer.on(trouble, (error) => {
      console.error(error);
      process.exit(1);
    });
  }
  consumer.start();
}

const used = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};
const pause = (wait) => new Promise((done) => setTimeout(done, 1000 * wait));

await pause(Number(warmUp));
const before = { messages, cpu: used(), at: performance.now() };
await pause(Number(seconds));
console.log(
  JSON.stringify({
    messages: messages - before.messages,
    cpu: used() - before.cpu,
    wall: (performance.now() - before.at) / 1000,
    rss: process.memoryUsage.rss(),
  }),
);
process.exit(0);

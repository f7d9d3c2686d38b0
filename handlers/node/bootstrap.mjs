// Runs a Node handler over Lambda's Runtime API: `node bootstrap.mjs`, with _HANDLER = "file.function".
// Where the official aws-lambda-ric can be installed, use that; this has no dependency.
import { request } from "node:http";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(":");

function call(method, path, body) {
  return new Promise((resolve, reject) => {
    const options = { host, port, method, path: `/2018-06-01/runtime/${path}`, agent: false };
    const sent = request(options, (answer) => {
      const chunks = [];
      answer.on("data", (chunk) => chunks.push(chunk));
      answer.on("end", () => resolve({ headers: answer.headers, body: Buffer.concat(chunks).toString() }));
    });
    sent.on("error", reject);
    sent.end(body);
  });
}

function shape(error) {
  const trace = (error?.stack ?? "").split("\n");
  return JSON.stringify({ errorType: error?.name ?? "Error", errorMessage: error?.message ?? String(error), trace });
}

async function load() {
  const [file, name] = process.env._HANDLER.split(".");
  const path = [".mjs", ".js", ".cjs"].map((end) => join(process.env.LAMBDA_TASK_ROOT, file + end)).find(existsSync);
  if (!path) throw Object.assign(new Error(`Cannot find module '${file}'`), { name: "Runtime.ImportModuleError" });
  const handler = (await import(pathToFileURL(path)))[name];
  if (!handler) throw Object.assign(new Error(`${file}.${name} is undefined`), { name: "Runtime.HandlerNotFound" });
  return handler;
}

function contextOf(headers) {
  const deadline = Number(headers["lambda-runtime-deadline-ms"]);
  return {
    awsRequestId: headers["lambda-runtime-aws-request-id"],
    invokedFunctionArn: headers["lambda-runtime-invoked-function-arn"],
    functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
    functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION,
    memoryLimitInMB: process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: process.env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: process.env.AWS_LAMBDA_LOG_STREAM_NAME,
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now()),
  };
}

let handler;
try {
  handler = await load();
} catch (error) {
  await call("POST", "init/error", shape(error));
  process.exit(1);
}
for (;;) {
  const { headers, body } = await call("GET", "invocation/next");
  const context = contextOf(headers);
  process.env._X_AMZN_TRACE_ID = headers["lambda-runtime-trace-id"];
  const path = `invocation/${context.awsRequestId}`;
  try {
    const result = await handler(JSON.parse(body), context);
    await call("POST", `${path}/response`, JSON.stringify(result ?? null));
  } catch (error) {
    await call("POST", `${path}/error`, shape(error));
  }
}

// Scores two answers of a Trimtab reward service, over gRPC and over HTTP.
//
//   npm install
//   node score.mjs 127.0.0.1:50053 http://127.0.0.1:8053
//
// TRIMTAB_KEY is sent along if it is set, TRIMTAB_MODEL names the model, TRIMTAB_PROTOS the folder of the .proto
// files (by default the one above this). A score has a value or an error, never both and never neither.
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [target, url] = process.argv.slice(2);
const { TRIMTAB_KEY: key, TRIMTAB_MODEL: model = "", TRIMTAB_PROTOS: protos } = process.env;
const TIMEOUT_MS = 60_000;

const inputs = [
  { prompt: "How are you?", completion: "Wonderful, thank you!" },
  {
    messages: [
      { role: "user", content: "How are you?" },
      { role: "assistant", content: "Terrible, and that is your fault." },
    ],
  },
];

/** The values of scores, in order; an Error for the first row that has none. */
function values(scores) {
  return scores.map(({ value, error }, index) => {
    if (value === undefined) throw new Error(`inputs[${index}]: ${error.code}: ${error.message}`);
    return value;
  });
}

async function scoreOverGrpc() {
  const folder = protos ?? fileURLToPath(new URL("../", import.meta.url));
  const definition = loader.loadSync("trimtab/reward/v1/reward.proto", {
    includeDirs: [folder],
    keepCase: true,
    oneofs: true, // an optional value that is absent stays absent
  });
  const { RewardService } = grpc.loadPackageDefinition(definition).trimtab.reward.v1;
  const client = new RewardService(target, grpc.credentials.createInsecure());
  const metadata = new grpc.Metadata();
  if (key) metadata.set("authorization", `Bearer ${key}`);
  try {
    const answer = await new Promise((resolve, reject) => {
      const options = { deadline: Date.now() + TIMEOUT_MS };
      client.Score({ model, inputs }, metadata, options, (error, reply) => (error ? reject(error) : resolve(reply)));
    });
    return values(answer.scores);
  } finally {
    client.close();
  }
}

async function scoreOverHttp() {
  const response = await fetch(`${url}/v1/score`, {
    method: "POST",
    headers: { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) },
    body: JSON.stringify({ model, inputs }),
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  return values((await response.json()).scores);
}

try {
  if (!target) throw new Error("usage: node score.mjs HOST:PORT [http://HOST:PORT]");
  console.log(JSON.stringify({ grpc: await scoreOverGrpc(), ...(url && { http: await scoreOverHttp() }) }));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}

// The JavaScript SDK v3 as a pod uses it; the protocol is in ../README.md.
import { createInterface } from "node:readline";
import { fromNodeProviderChain } from "@aws-sdk/credential-providers";
import { GetCallerIdentityCommand, STSClient } from "@aws-sdk/client-sts";

const provider = fromNodeProviderChain();
const sts = new STSClient({ credentials: provider });

const commands = {
  async get() {
    const { accessKeyId, expiration, accountId } = await provider();
    return { accessKeyId, expiration: expiration?.toISOString(), account: accountId };
  },
  async identity() {
    const answer = await commands.get();
    const { Arn: arn } = await sts.send(new GetCallerIdentityCommand({}));
    return { ...answer, arn };
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const started = performance.now();
  let answer;
  try {
    answer = { ok: true, ...(await commands[line.trim()]()) };
  } catch (error) {
    answer = { ok: false, error: `${error.name}: ${error.message}` };
  }
  answer.ms = Math.round(performance.now() - started);
  console.log(JSON.stringify(answer));
}

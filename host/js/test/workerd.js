/** Runs a worker in workerd with what was built and `parts` on top, and talks to it over loopback. */
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import workerd from 'workerd';
import { policies, sets } from './modules.js';

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));

/**
 * Starts workerd. Compiled modules come from its configuration: code in a worker may not compile any.
 *
 * @returns {Promise<{ get: (path: string) => Promise<any>, stop: () => void }>}
 */
export async function start() {
  const module = (name, kind, file) => `(name = ${JSON.stringify(name)}, ${kind} = embed ${JSON.stringify(file)})`;
  const imports = policies.map((name, i) => `import wasm${i} from '../dist/${name}.wasm';\nimport text${i} from '../corpus/${name}';`);
  const table = policies.map((name, i) => `  ${JSON.stringify(name)}: [wasm${i}, text${i}],`);
  imports.push(...sets.map((set, i) => `import set${i} from '../corpus/${set}';`));
  const texts = sets.map((set, i) => `  ${JSON.stringify(set)}: set${i},`);
  writeFileSync(
    path('../dist/worker-modules.js'),
    `${imports.join('\n')}
export default {\n${table.join('\n')}\n};
export const sets = {\n${texts.join('\n')}\n};\n`,
  );
  const modules = [
    module('test/worker.js', 'esModule', '../test/worker.js'),
    module('test/replay.js', 'esModule', '../test/replay.js'),
    module('test/replay-patterns.js', 'esModule', '../test/replay-patterns.js'),
    module('bench/work.js', 'esModule', '../bench/work.js'),
    module('src/instance.js', 'esModule', '../src/instance.js'),
    module('src/patterns.js', 'esModule', '../src/patterns.js'),
    module('src/policy.js', 'esModule', '../src/policy.js'),
    module('dist/patterns.js', 'esModule', 'patterns.js'),
    module('dist/policy.js', 'esModule', 'policy.js'),
    module('dist/worker-modules.js', 'esModule', 'worker-modules.js'),
    module('dist/policy.core2.wasm', 'wasm', 'policy.core2.wasm'),
    module('dist/policy.core3.wasm', 'wasm', 'policy.core3.wasm'),
    module('dist/patterns.wasm', 'wasm', 'patterns.wasm'),
    module('dist/patterns.core2.wasm', 'wasm', 'patterns.core2.wasm'),
    module('dist/patterns.core3.wasm', 'wasm', 'patterns.core3.wasm'),
    ...policies.map((name) => module(`dist/${name}.wasm`, 'wasm', `${name}.wasm`)),
    ...[...policies, ...sets].map((name) => module(`corpus/${name}`, 'text', `../../../tests/corpus/${name}.jsonl`)),
  ];
  writeFileSync(
    path('../dist/workerd.capnp'),
    `using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [(name = "main", worker = (modules = [\n    ${modules.join(',\n    ')}\n  ], compatibilityDate = "2026-01-01"))],
  sockets = [(name = "http", address = "127.0.0.1:0", http = (), service = "main")]
);
`,
  );

  const child = spawn(workerd.default, ['serve', path('../dist/workerd.capnp'), '--control-fd=3'], {
    stdio: ['ignore', 'inherit', 'inherit', 'pipe'],
  });
  const port = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`workerd exited with ${code} before it listened`)));
    // workerd tells which port it was given.
    createInterface(child.stdio[3]).on('line', (line) => {
      const event = JSON.parse(line);
      if (event.event === 'listen' && event.socket === 'http') resolve(event.port);
    });
  });
  return {
    async get(path) {
      const response = await fetch(`http://127.0.0.1:${port}${path}`);
      if (!response.ok) throw new Error(`${path}: ${await response.text()}`);
      return response.json();
    },
    stop: () => child.kill(),
  };
}

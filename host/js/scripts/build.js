/**
 * Transpiles the built-in modules into `dist/`.
 *
 * The components are those that the Rust host embeds: the same cargo command, profile and target directory as
 * `host/larder/build.rs`, so that nothing is built twice. jco's JavaScript depends on the world and not on the module:
 * one file, `policy.js`, serves all policies, another, `patterns.js`, the modules of that role; and what a module adds is one
 * core module, `NAME.wasm`.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { transpileBytes } from '@bytecodealliance/jco-transpile';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const dist = fileURLToPath(new URL('../dist', import.meta.url));

function cargo(...args) {
  const options = { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 1 << 28 };
  const { status, error, stdout } = spawnSync('cargo', args, options);
  if (error) throw new Error(`cargo, which builds the policies, could not be run: ${error.message}`);
  if (status !== 0) {
    console.error(`\`cargo ${args[0]}\` failed: see above`);
    process.exit(1);
  }
  return stdout;
}

/** A component has the names of what it exports in plain text. */
function roleOf(name, bytes) {
  if (bytes.includes('larder:policy/eviction@')) return 'policy';
  if (bytes.includes('larder:policy/patterns@')) return 'patterns';
  throw new Error(`\`${name}\` has no role that is known here`);
}

const { target_directory: target } = JSON.parse(cargo('metadata', '--format-version', '1', '--no-deps'));
const messages = cargo(
  ...['build', '--quiet', '--package', 'larder-modules', '--features', 'components', '--examples'],
  ...['--target', 'wasm32-wasip2', '--profile', 'guest', '--message-format', 'json-render-diagnostics'],
  ...['--target-dir', join(target, 'larder-guest')],
);
const components = messages
  .split('\n')
  .filter(Boolean)
  .map((line) => JSON.parse(line))
  .filter(({ reason, target }) => reason === 'compiler-artifact' && target.kind[0] === 'example')
  .map(({ target, filenames }) => ({ name: target.name, file: filenames.find((file) => file.endsWith('.wasm')) }))
  .map(({ name, file }) => ({ name, file, role: roleOf(name, readFileSync(file)) }))
  .sort((a, b) => (a.name < b.name ? -1 : 1));
if (components.length === 0) throw new Error('cargo built no components: does guest/modules list any [[example]]?');

// Transpiling takes a second for each; what has not changed is not done again.
const digest = createHash('sha256').update(readFileSync(fileURLToPath(import.meta.url)));
digest.update(readFileSync(new URL('../package-lock.json', import.meta.url)));
for (const { name, file } of components) digest.update(name).update(readFileSync(file));
const stamp = digest.digest('hex');
const stampFile = join(dist, 'built.json');
if (!existsSync(stampFile) || JSON.parse(readFileSync(stampFile)).stamp !== stamp) {
  rmSync(dist, { recursive: true, force: true });
  mkdirSync(dist, { recursive: true });
  const shared = new Map();
  for (const { name, file, role } of components) {
    const options = { name: role, instantiation: 'sync', emitTypescriptDeclarations: true };
    const { files, imports } = await transpileBytes(readFileSync(file), options);
    if (imports.length > 0) throw new Error(`\`${name}\` imports ${imports}: a built-in imports nothing`);
    for (const [path, bytes] of Object.entries(files)) {
      if (path === `${role}.core.wasm`) {
        writeFileSync(join(dist, `${name}.wasm`), bytes);
      } else if (!shared.has(path)) {
        shared.set(path, bytes);
        mkdirSync(join(dist, path, '..'), { recursive: true });
        writeFileSync(join(dist, path), bytes);
      } else if (Buffer.compare(shared.get(path), bytes) !== 0) {
        throw new Error(`${path} is another file for \`${name}\`: one can no longer serve all modules`);
      }
    }
  }
  const names = (role) => components.filter((component) => component.role === role).map(({ name }) => name);
  writeFileSync(stampFile, JSON.stringify({ stamp, policies: names('policy'), patterns: names('patterns') }));
}

/** The worker under test: `/replay/NAME` replays the corpus, `/work/NAME/SIZE/CALLS` makes calls for the benchmark. */
import { Module } from '../src/policy.js';
import { instantiate } from '../dist/policy.js';
import core2 from '../dist/policy.core2.wasm';
import core3 from '../dist/policy.core3.wasm';
import modules from '../dist/worker-modules.js';
import { work } from '../bench/work.js';
import { replay } from './replay.js';

function answer(url) {
  const [what, name, ...rest] = new URL(url).pathname.slice(1).split('/');
  if (!Object.hasOwn(modules, name)) throw new Error(`there is no policy \`${name}\``);
  const [core, corpus] = modules[name];
  const module = new Module(instantiate, {
    'policy.core.wasm': core,
    'policy.core2.wasm': core2,
    'policy.core3.wasm': core3,
  });
  if (what === 'replay') return { name: module.describe().name, ...replay(module, corpus) };
  if (what === 'work') return work(module, ...rest.map(Number));
  throw new Error(`what is \`${what}\`?`);
}

export default {
  fetch(request) {
    try {
      return Response.json(answer(request.url));
    } catch (error) {
      return new Response(String(error.stack ?? error), { status: 500 });
    }
  },
};

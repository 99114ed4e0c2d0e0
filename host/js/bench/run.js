/**
 * What a call costs in Node and in workerd: `npm run bench`.
 *
 * A worker's clock stands still while it computes (a defence against timing attacks), so workerd is timed from outside:
 * a long run less a short one.
 */
import { load } from '../test/modules.js';
import { start } from '../test/workerd.js';
import { work } from './work.js';

const worker = await start();
const runs = {
  node: async (name, size, calls) => work(load(name), size, calls),
  workerd: (name, size, calls) => worker.get(`/work/${name}/${size}/${calls}`),
};
console.log('runtime  policy     batch  µs a call  ns an event');
for (const [runtime, run] of Object.entries(runs)) {
  for (const name of ['lru', 's3-fifo', 'adaptive']) {
    for (const size of [1, 16, 64, 256]) {
      const calls = Math.max(2_000, Math.floor(400_000 / size));
      const time = async (n) => {
        const start = performance.now();
        await run(name, size, n);
        return performance.now() - start;
      };
      const warm = Math.floor(calls / 10);
      await time(warm);
      const times = [];
      for (let i = 0; i < 3; i += 1) times.push((await time(calls)) - (await time(warm)));
      const micros = (Math.min(...times) * 1000) / (calls - warm);
      const event = (micros * 1000) / (2 * size);
      console.log(
        `${runtime.padEnd(8)} ${name.padEnd(10)} ${String(size).padStart(5)} ${micros.toFixed(2).padStart(10)} ${event.toFixed(0).padStart(12)}`,
      );
    }
  }
}
const begin = performance.now();
const module = load('adaptive');
const compiled = performance.now();
module.open({ capacity: 10_000n, expected: 10_000 });
console.log(`node, adaptive: compile ${(compiled - begin).toFixed(1)} ms, open ${(performance.now() - compiled).toFixed(1)} ms`);
worker.stop();

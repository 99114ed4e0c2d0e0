/** Batches as a busy shard sends them: `size` touches and `size` arrivals each. Runs in any runtime. */
import { fingerprint } from '../test/replay.js';

export function work(module, size, calls) {
  const capacity = 10_000;
  const policy = module.open({ capacity: BigInt(capacity), expected: capacity });
  // Columns are made beforehand and refilled: what is measured is the call.
  const free = Array.from({ length: capacity + 2 * size + 2 }, (_, i) => capacity + 2 * size + 1 - i);
  const slots = new Uint32Array(size);
  const fingerprints = new BigUint64Array(size);
  const prints = BigUint64Array.from({ length: 1 << 16 }, (_, i) => fingerprint(i));
  const touched = new Uint32Array(size);
  let recent = new Uint32Array(0);
  let victims = 0;
  let next = 0;
  for (let call = 0; call < calls; call += 1) {
    for (let i = 0; i < size; i += 1) {
      slots[i] = free.pop();
      fingerprints[i] = prints[next++ & 0xffff];
    }
    const gone = policy.advance({ now: BigInt(call), touched: recent, arrived: { slots, fingerprints } });
    victims += gone.length;
    for (const slot of gone) free.push(slot);
    // Those that just came and stayed; a refused one may not be touched.
    const refused = new Set(gone);
    let n = 0;
    for (const slot of slots) if (!refused.has(slot)) touched[n++] = slot;
    recent = touched.subarray(0, n);
  }
  return { victims };
}

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { policies, sets } from './modules.js';
import { start } from './workerd.js';

let worker;
before(async () => {
  worker = await start();
});
after(() => worker?.stop());

for (const name of policies) {
  test(`${name} decides in workerd as recorded`, async () => {
    const report = await worker.get(`/replay/${name}`);
    assert.equal(report.name, name);
    assert.ok(report.calls > 1000 && report.victims > 1000, JSON.stringify(report));
  });
}

for (const set of sets) {
  test(`${set} decides in workerd as recorded`, async () => {
    for (const atOnce of [1, 64]) {
      const report = await worker.get(`/steps/${encodeURIComponent(set)}/${atOnce}`);
      assert.equal(report.name, 'patterns');
      assert.ok(report.steps > 500, JSON.stringify(report));
    }
  });
}

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { policies } from './modules.js';
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

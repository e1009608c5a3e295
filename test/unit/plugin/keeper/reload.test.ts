/** The keeper itself, with small programs in the place of its children: orders that come while another is carried out. */
import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { waitFor } from '../../../support/wait.ts';

const KEEPER = resolve(import.meta.dirname, '../../../../plugin/keeper/main.ts');

/** What both children begin with: `tell` writes a line that the test and the other child read, `told` reads. */
const COMMON = (file: string): string => `
import fs from 'node:fs';
const told = () => fs.readFileSync(${JSON.stringify(file)}, 'utf8').split('\\n');
const tell = (line) => fs.appendFileSync(${JSON.stringify(file)}, line + '\\n');
const when = (isSo, then) => { const timer = setInterval(() => { if (isSo()) { clearInterval(timer); then(); } }, 20); };
process.on('message', (message) => { if (message.op === 'ping') process.send({ op: 'pong', id: message.id }); });
process.on('disconnect', () => process.exit(1));
process.on('SIGINT', () => {});
`;

const BLOCKD = `
const isFirst = !told().includes('blockd');
tell(isFirst ? 'blockd' : 'blockd again');
process.on('message', ({ op }) => { if (op === 'stop') process.exit(0); });
// The second is long in coming: until the order to end has reached the other.
when(() => isFirst || told().some((line) => line.startsWith('stop')), () => process.send({ op: 'ready' }));
`;

const SIDECAR = `
process.on('message', ({ op, unmount }) => {
  if (op !== 'stop') return;
  tell('stop' + (unmount ? ' and unmount' : ''));
  // Unmounting takes its time.
  if (unmount) setTimeout(() => { tell('unmounted'); process.exit(0); }, 1500);
});
process.send({ op: 'ready' });
tell('sidecar');
`;

test('an end that comes during a reload unmounts everything, and nothing kills who does it', async () => {
  const app = mkdtempSync(join(tmpdir(), 'obd-keeper-'));
  onTestFinished(() => rmSync(app, { recursive: true }));
  const file = join(app, 'told');
  writeFileSync(file, '');
  writeFileSync(join(app, 'package.json'), '{"type":"module"}');
  mkdirSync(join(app, 'plugin', 'blockd'), { recursive: true });
  writeFileSync(join(app, 'plugin', 'blockd', 'main.ts'), COMMON(file) + BLOCKD);
  writeFileSync(join(app, 'plugin', 'main.ts'), COMMON(file) + SIDECAR);
  const { NOTIFY_SOCKET: _, ...env } = process.env;
  const keeper = spawn(process.execPath, [KEEPER, '--app', app], { env, stdio: 'ignore' });
  const ended = new Promise<number | null>((done) => keeper.once('exit', done));
  onTestFinished(async () => {
    keeper.kill('SIGKILL');
    await ended;
  });
  const told = (): string[] => readFileSync(file, 'utf8').split('\n').filter(Boolean);
  await waitFor(() => told().includes('sidecar'), { what: 'both to be ready' });
  keeper.kill('SIGHUP');
  await waitFor(() => told().includes('blockd again'), { what: 'the first to be replaced' });
  keeper.kill('SIGINT');
  expect(await ended).toBe(0);
  expect(told()).toEqual(['blockd', 'sidecar', 'blockd again', 'stop and unmount', 'unmounted']);
});

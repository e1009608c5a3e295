import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { lockForLife } from '../../../../plugin/kernel/file-lock.ts';
import { Scratch } from '../../../support/scratch.ts';

test('a lock is refused while another process lives that holds it, and given when that one is killed', async () => {
  await using scratch = await Scratch.create('lock');
  const path = join(scratch.path, 'lock');
  const holder = spawn('flock', ['--no-fork', path, 'sh', '-c', 'echo held; exec sleep 600'], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(holder.stdout, 'data');
  await expect(lockForLife(path, AbortSignal.timeout(50))).rejects.toMatchObject({ code: 'Unavailable' });
  const waiting = lockForLife(path, AbortSignal.timeout(30_000));
  holder.kill('SIGKILL');
  await waiting;
  await expect(lockForLife(path, AbortSignal.timeout(50))).rejects.toMatchObject({ code: 'Unavailable' });
});

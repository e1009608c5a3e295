/** Pods over the admin API and as obdctl prints them: listed, explained by uid and by name, and refused politely when unknown. */
import { Command } from 'commander';
import { expect, test } from 'vitest';
import { addPodCommands } from '../../../admin/pod-commands.ts';
import { fakeApp } from './fake-app.ts';
import { POD } from './fake-pods.ts';

test('pods are listed and explained by uid or name; unknown ones are NotFound', async () => {
  const { app } = fakeApp();
  const get = async (path: string): Promise<{ status: number; body: unknown }> => {
    const response = await app.request(path);
    return { status: response.status, body: await response.json() };
  };
  expect(await get('/v1/pods')).toEqual({ status: 200, body: { pods: [POD] } });
  expect(await get(`/v1/pods/${POD.uid}`)).toEqual({ status: 200, body: POD });
  expect(await get('/v1/pods/team%2Fweb-0')).toEqual({ status: 200, body: POD });
  expect(await get('/v1/pods/team%2Fother')).toMatchObject({ status: 404, body: { code: 'NotFound' } });
});

test('obdctl pod ls and explain say what was decided, where it came from and why', async () => {
  const { app } = fakeApp();
  const printed: string[] = [];
  const tools = {
    call: async <T>(method: string, path: string): Promise<T> => (await (await app.request(path, { method })).json()) as T,
    print: (_answer: unknown, text: () => string): void => {
      printed.push(text());
    },
  };
  for (const words of [['ls'], ['explain', 'team/web-0']]) {
    const program = new Command();
    addPodCommands(program, tools);
    await program.parseAsync(['pod', ...words], { from: 'user' });
  }
  expect(printed[0]).toMatch(/team\/web-0 +pin +cache/);
  expect(printed[1]).toContain('registry.example/team/app:1: pinned-cache imc-00000000000000000001, came: cache');
  expect(printed[1]).toContain('  - the registry consents (with Secret team/acr-credential-a)');
});

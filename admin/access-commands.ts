/** Who may do what: bearer tokens for TCP, and credentials of registries. */
import { type Command, InvalidArgumentError } from 'commander';
import { whole } from './arguments.ts';
import { SCOPES } from './auth/scopes.ts';
import type { TokenView } from './auth/tokens.ts';
import type { AdminMethod } from './client.ts';
import { readSecret } from './read-secret.ts';
import type { RegistryView } from './registry-routes.ts';
import { printRemoved, table } from './render.ts';
import type { NewTokenView } from './token-routes.ts';

export interface AccessCommandTools {
  call<T>(method: AdminMethod, path: string, body?: unknown): Promise<T>;
  print(answer: unknown, text: () => string): void;
  /** For `$(obdctl …)`. */
  printWord(answer: unknown, word: string): void;
}

function scopesOf(text: string): string[] {
  const scopes = text.split(',');
  const unknown = scopes.find((scope) => !SCOPES.some((known) => known === scope));
  if (unknown !== undefined) throw new InvalidArgumentError(`${unknown} is none of ${SCOPES.join(', ')}`);
  return scopes;
}

const renderTokens = (rows: readonly TokenView[]): string =>
  table(
    ['ID', 'NAME', 'SCOPES', 'CREATED', 'EXPIRES'],
    rows.map((row) => [row.id, row.name, row.scopes.join(','), row.createdAt, row.expiresAt ?? 'never']),
  );

/** Adds the commands to the program. */
export function addAccessCommands(program: Command, { call, print, printWord }: AccessCommandTools): void {
  const token = program.command('token').description('bearer tokens of the admin API on TCP');
  token
    .command('create')
    .description('makes a token; its text is printed this once')
    .argument('<name>', 'who uses it; in the audit log')
    .requiredOption('--scope <scopes>', `comma list of ${SCOPES.join(', ')}; each may read, admin may everything`, scopesOf)
    .option('--days <days>', 'refused after so many days (default: never)', whole)
    .action(async (name: string, { scope, days }: { scope: string[]; days?: number }) => {
      const made = await call<NewTokenView>('POST', '/v1/tokens', { name, scopes: scope, expiresInDays: days });
      printWord(made, made.token);
    });
  token
    .command('ls')
    .description('tokens, without their text')
    .action(async () => {
      const answer = await call<{ tokens: TokenView[] }>('GET', '/v1/tokens');
      print(answer, () => renderTokens(answer.tokens));
    });
  token
    .command('rm')
    .description('removes tokens; they are refused from then on')
    .argument('<id...>')
    .action(async (ids: string[]) => {
      for (const id of ids) await call('DELETE', `/v1/tokens/${encodeURIComponent(id)}`);
      printRemoved(print, ids);
    });

  const registry = program.command('registry').description('credentials of registries; they are never shown');
  registry
    .command('set')
    .description('keeps credentials; the password is asked for, or read from standard input where that is no terminal')
    .argument('<registry>', 'host[:port], or host[:port]/part-of-a-repository')
    .argument('<user>')
    .action(async (name: string, userName: string) => {
      const password = await readSecret(`Password of ${userName} at ${name}: `);
      const kept = await call<RegistryView>('PUT', `/v1/registries/${encodeURIComponent(name)}`, { userName, password });
      print(kept, () => `${kept.registry}: kept\n`);
    });
  registry
    .command('ls')
    .description('registries that have credentials here')
    .action(async () => {
      const answer = await call<{ registries: RegistryView[] }>('GET', '/v1/registries');
      const rows = answer.registries.map((row) => [row.registry, row.kind, row.updatedAt]);
      print(answer, () => table(['REGISTRY', 'KIND', 'UPDATED'], rows));
    });
  registry
    .command('rm')
    .description('forgets credentials')
    .argument('<registry...>')
    .action(async (names: string[]) => {
      for (const name of names) await call('DELETE', `/v1/registries/${encodeURIComponent(name)}`);
      printRemoved(print, names);
    });
}

/** The admin API over parts in memory, and a look at what it told the audit log. */
import { type AdminAppOptions, createAdminApp } from '../../../admin/app.ts';
import { Audit } from '../../../admin/audit.ts';
import { type TokenRow, Tokens } from '../../../admin/auth/tokens.ts';
import type { AdminApp } from '../../../admin/context.ts';
import type { RegistryCredentials, StoredCredential } from '../../../admin/registry-routes.ts';
import { systemClock } from '../../../plugin/base/clock.ts';
import { AppError } from '../../../plugin/base/errors.ts';
import { silentLogger } from '../../../plugin/base/log.ts';
import { MemoryCaches } from '../../support/memory-caches.ts';
import { fakeConvert } from './fake-convert.ts';
import { fakeServices } from './fake-services.ts';

export function memoryTokens(nowMs?: () => number): Tokens {
  const rows = new Map<string, TokenRow>();
  const clock = nowMs === undefined ? systemClock : { ...systemClock, nowMs };
  const store = {
    add: (row: TokenRow) => void rows.set(row.id, row),
    find: (id: string) => rows.get(id),
    list: () => [...rows.values()],
    count: () => rows.size,
    remove: (id: string) => rows.delete(id),
  };
  return new Tokens(store, clock);
}

export function memoryRegistries(): RegistryCredentials & { readonly secrets: ReadonlyMap<string, unknown> } {
  const kept = new Map<string, StoredCredential>();
  const secrets = new Map<string, unknown>();
  return {
    secrets,
    list: async () => [...kept.values()],
    put: async (scope, secret) => {
      const kind = 'password' in secret ? 'password' : 'identity-token';
      const stored = { scope, kind, updatedAt: '2026-01-31T12:00:00.000Z' } as const;
      secrets.set(scope, secret);
      kept.set(scope, stored);
      return stored;
    },
    remove: async (scope) => {
      secrets.delete(scope);
      if (!kept.delete(scope)) throw new AppError('NotFound', { op: 'forget credentials', subject: scope, what: 'there are none' });
    },
  };
}

export interface FakeApp {
  app: AdminApp;
  caches: MemoryCaches;
  tokens: Tokens;
  audit: Audit;
  /** `type subject message` of each event that the audit log appended. */
  audited: string[];
}

export function fakeApp(overrides: Partial<AdminAppOptions> & { caches?: MemoryCaches } = {}): FakeApp {
  const audited: string[] = [];
  const audit = new Audit(silentLogger, { append: (type, subject, message) => audited.push(`${type} ${subject} ${message}`) });
  const caches = overrides.caches ?? new MemoryCaches();
  const tokens = overrides.tokens ?? memoryTokens();
  const app = createAdminApp({
    services: fakeServices(),
    convert: fakeConvert(),
    registries: memoryRegistries(),
    version: '0.1.0',
    log: silentLogger,
    ...overrides,
    ...{ caches, tokens, audit: overrides.audit ?? audit },
  });
  return { app, caches, tokens, audit, audited };
}

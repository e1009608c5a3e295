/** The admin API over parts in memory, and a look at what it told the audit log. */
import { type AdminAppOptions, createAdminApp } from '../../../admin/app.ts';
import { Audit, type AuditRecord, type AuditRows, auditEvent } from '../../../admin/audit.ts';
import { type TokenRow, Tokens } from '../../../admin/auth/tokens.ts';
import type { AdminApp } from '../../../admin/context.ts';
import type { RegistryCredentials, StoredCredential } from '../../../admin/registry-routes.ts';
import { systemClock } from '../../../plugin/base/clock.ts';
import { AppError } from '../../../plugin/base/errors.ts';
import { silentLogger } from '../../../plugin/base/log.ts';
import type { ConvertRule } from '../../../plugin/convert/service.ts';
import { MemoryCaches } from '../../support/memory-caches.ts';
import { fakeConvert, JOB } from './fake-convert.ts';
import { fakePods } from './fake-pods.ts';
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

function memoryAudit(onAppend: (record: AuditRecord) => void): AuditRows {
  const rows: (AuditRecord & { id: number })[] = [];
  return {
    append: (record) => {
      rows.unshift({ ...record, id: rows.length + 1 });
      onAppend(record);
    },
    list: ({ limit, before = Number.POSITIVE_INFINITY, kind }) =>
      rows.filter((row) => row.id < before && (kind === undefined || row.kind === kind)).slice(0, limit),
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
  const rows = memoryAudit((record) => {
    const { type, subject, message } = auditEvent(record);
    audited.push(`${type} ${subject} ${message}`);
  });
  const audit = overrides.audit ?? new Audit(silentLogger, rows);
  const caches = overrides.caches ?? new MemoryCaches();
  const tokens = overrides.tokens ?? memoryTokens();
  const app = createAdminApp({
    services: fakeServices(),
    convert: fakeConvert(),
    pods: fakePods(),
    registries: memoryRegistries(),
    version: '0.1.0',
    log: silentLogger,
    ...overrides,
    ...{ caches, tokens, audit },
  });
  return { app, caches, tokens, audit, audited };
}

const RULE: ConvertRule = {
  ...{ id: 1, repository: { host: 'registry.example', repository: 'team/app' }, isEnabled: true, createdUs: 1, enabledUs: 1 },
  ...{ request: JOB.request, filter: { type: 'ALL' }, detection: 'poll', hasBaseline: true },
};

const theRule = (id: number): ConvertRule => {
  if (id === RULE.id) return RULE;
  throw new AppError('NotFound', { op: 'find', subject: `rule ${id}`, what: 'there is none' });
};

/** A fresh application that has a cache, a job, a rule, a registry's credentials and a token: whatever an operation may name. */
export async function appWithOneOfEach(): Promise<FakeApp & { tokenId: string }> {
  const tokens = memoryTokens();
  const convert = fakeConvert({ rules: () => [RULE], rule: theRule, changeRule: theRule });
  const fake = fakeApp({ tokens, convert });
  const { app, caches } = fake;
  await caches.create({ imageCacheName: 'kept', images: ['registry.example/team/app:1'] });
  const put = { method: 'PUT', body: JSON.stringify({ identityToken: 't' }), headers: { 'content-type': 'application/json' } };
  await app.request('/v1/registries/kept.example', put);
  return { ...fake, tokenId: tokens.create({ name: 'x', scopes: ['read'] }).id };
}

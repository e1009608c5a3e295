/**
 * Keeps credentials fresh that somebody still reads with: those of programs before they expire, those of Secrets soon after they change.
 * Works from what is in the vault alone, so it goes on after a restart. What nobody has used for a day, and no snapshot needs, goes.
 */
import { z } from 'zod';
import type { Clock } from '../../base/clock.ts';
import { AppError, describeError, isAppError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { VaultEntry } from '../../registry/vault/entry.ts';
import type { CredentialVault } from '../../registry/vault/vault.ts';
import type { PodEvents } from '../pods/pod-events.ts';
import { askProvider } from './provider.ts';
import { matchesRule, type RuleBook } from './rules.ts';
import { orderSecrets, type PodSecrets } from './secrets.ts';

const TICK_MS = 500;
/** Of a credential's life, what passes before it is renewed. */
const RENEW_SHARE = 0.75;
const FIRST_BACKOFF_MS = 1_000;
const MAX_BACKOFF_MS = 60_000;
/** One renewal, program and network included. */
const RENEWAL_MS = 20_000;
/** An entry that no pull has brought again for so long goes, unless a snapshot needs it. */
const UNUSED_MS = 24 * 3_600_000;
const SWEEP_MS = 3_600_000;
/** Renewals at once: programs are heavy. */
const MAX_AT_ONCE = 4;

const place = { host: z.string(), repository: z.string(), namespace: z.string() };
const secretRenewalSchema = z.object({ kind: z.literal('secret'), ...place, secrets: z.array(z.string()) });
const ruleRenewalSchema = z.object({
  kind: z.literal('rule'),
  ...place,
  rule: z.string(),
  serviceAccount: z.string().nullable(),
  lifeMs: z.number(),
});
const renewalSchema = z.discriminatedUnion('kind', [secretRenewalSchema, ruleRenewalSchema]);
export type SecretRenewal = z.infer<typeof secretRenewalSchema>;
export type RuleRenewal = z.infer<typeof ruleRenewalSchema>;

export interface RenewerOptions {
  readonly vault: CredentialVault;
  readonly secrets: PodSecrets | undefined;
  readonly rules: RuleBook;
  readonly clock: Clock;
  readonly events: PodEvents;
  readonly logger: Logger;
  /** How often Secrets are looked at, in milliseconds. */
  readonly secretRecheckMs: number;
  /** True while a snapshot reads from the repository. */
  readonly isRepositoryNeeded: (host: string, repository: string) => boolean;
}

export class CredentialRenewer implements AsyncDisposable {
  private readonly options: RenewerOptions;
  private readonly stopping = new AbortController();
  /** When each entry is looked at next, and how often it failed in a row. */
  private readonly plans = new Map<string, { dueMs: number; failures: number }>();
  private readonly running = new Map<string, Promise<void>>();
  private readonly timer: NodeJS.Timeout;
  private sweptMs: number;

  constructor(options: RenewerOptions) {
    this.options = options;
    this.sweptMs = options.clock.monotonicMs();
    this.timer = setInterval(() => this.tick(), TICK_MS);
    this.timer.unref();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.timer);
    this.stopping.abort(new AppError('Canceled', { op: 'renew', subject: 'credentials', what: 'the service ends' }));
    await Promise.all(this.running.values());
  }

  private tick(): void {
    const { vault, clock } = this.options;
    const nowMs = clock.nowMs();
    const entries = vault.list();
    for (const entry of entries) {
      if (this.running.size >= MAX_AT_ONCE) break;
      if (entry.renewal === null || this.running.has(entry.id) || nowMs < this.dueMs(entry)) continue;
      const work = this.renew(entry).finally(() => this.running.delete(entry.id));
      this.running.set(entry.id, work);
    }
    if (clock.monotonicMs() - this.sweptMs < SWEEP_MS) return;
    this.sweptMs = clock.monotonicMs();
    const known = new Set(entries.map(({ id }) => id));
    for (const id of this.plans.keys()) if (!known.has(id)) this.plans.delete(id);
    const work = this.sweep(entries).finally(() => this.running.delete('sweep'));
    this.running.set('sweep', work);
  }

  private dueMs(entry: VaultEntry): number {
    const planned = this.plans.get(entry.id);
    if (planned !== undefined && planned.failures > 0) return planned.dueMs;
    if (entry.expiresMs !== null) return entry.savedMs + (entry.expiresMs - entry.savedMs) * RENEW_SHARE;
    return planned?.dueMs ?? 0;
  }

  /** Never rejects: a failure is told, and tried again. */
  private async renew(entry: VaultEntry): Promise<void> {
    const { clock, secretRecheckMs, events, logger } = this.options;
    const signal = AbortSignal.any([this.stopping.signal, AbortSignal.timeout(RENEWAL_MS)]);
    const before = this.plans.get(entry.id)?.failures ?? 0;
    try {
      await this.renewWith(entry, signal);
      this.plans.set(entry.id, { dueMs: clock.nowMs() + secretRecheckMs, failures: 0 });
      if (before > 0) events.add('credential-renewed', entry.prefix, 'its credentials could be renewed again');
    } catch (error) {
      if (this.stopping.signal.aborted) return;
      const failures = before + 1;
      const dueMs = clock.nowMs() + Math.min(FIRST_BACKOFF_MS * 2 ** (failures - 1), MAX_BACKOFF_MS);
      this.plans.set(entry.id, { dueMs, failures });
      if (!isAppError(error)) logger.error({ err: error, prefix: entry.prefix }, 'renewing a credential failed unexpectedly');
      if (failures === 1) events.add('credential-not-renewed', entry.prefix, `its credentials cannot be renewed: ${describeError(error)}`);
    }
  }

  private async renewWith(entry: VaultEntry, signal: AbortSignal): Promise<void> {
    const { vault, secrets, rules, clock } = this.options;
    const renewal = renewalSchema.parse(entry.renewal);
    const imageName = `${renewal.host}/${renewal.repository}`;
    const { savedMs: _, usedMs: __, ...kept } = entry;
    // A pull that brought newer ones meanwhile, or whoever removed it, is right.
    const isCurrent = (): boolean => vault.get(entry.id) === entry;
    const refuse = (what: string): AppError => new AppError('FailedPrecondition', { op: 'renew', subject: imageName, what });
    if (renewal.kind === 'secret') {
      if (secrets === undefined) throw refuse('no kubeconfig is configured any more');
      const { credentials, ignored } = await secrets.read(renewal.namespace, renewal.secrets, signal);
      const best = orderSecrets(credentials, imageName)[0];
      if (best === undefined)
        throw refuse(
          ignored.map(({ secret, reason }) => `Secret ${renewal.namespace}/${secret}: ${reason}`).join('; ') ||
            'its Secrets name no such registry',
        );
      if (isCurrent()) await vault.put({ ...kept, credential: best.credential }, { isUse: false });
      return;
    }
    const { namespace, host } = renewal;
    const serviceAccount = renewal.serviceAccount ?? undefined;
    const rule = (await rules.current()).find(
      (one) => one.name === renewal.rule && matchesRule(one, { namespace, serviceAccount, imageName }),
    );
    if (rule === undefined) throw refuse(`rule ${renewal.rule} is gone, or does not give credentials for it any more`);
    const provided = await askProvider(rule, { namespace, serviceAccount, host, imageName }, signal);
    if (provided === undefined) throw refuse(`rule ${renewal.rule} has none any more`);
    const { credential, lifeMs } = provided;
    const expiresMs = clock.nowMs() + lifeMs;
    if (isCurrent()) await vault.put({ ...kept, credential, expiresMs, renewal: { ...renewal, lifeMs } }, { isUse: false });
  }

  private async sweep(entries: readonly VaultEntry[]): Promise<void> {
    const { vault, clock, isRepositoryNeeded, logger } = this.options;
    try {
      for (const entry of entries) {
        const { id, origin, prefix, usedMs } = entry;
        // A pull may have brought it again while others went.
        if (vault.get(id) !== entry || origin === 'admin' || clock.nowMs() - usedMs < UNUSED_MS) continue;
        const slash = prefix.indexOf('/');
        if (!isRepositoryNeeded(prefix.slice(0, slash), prefix.slice(slash + 1))) await vault.delete(id);
      }
    } catch (error) {
      logger.error({ reason: describeError(error) }, 'unused credentials could not be removed; tried again in an hour');
    }
  }
}

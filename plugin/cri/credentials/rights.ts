/**
 * May somebody with these credentials have this image? The registry is asked for the manifest (one HEAD) with exactly those credentials, by
 * a client of its own, so that nothing of another pod is borrowed. A consent is believed for a while; a refusal never.
 *
 * Nobody may turn a no into silence: credentials that no registry can read (too long, not for a header) break the connection, as a registry
 * that is away does. So when credentials get no answer, the same is asked without; if that is answered, the credentials are to blame.
 */
import { LRUCache } from 'lru-cache';
import type { Clock } from '../../base/clock.ts';
import { describeError, isAppError } from '../../base/errors.ts';
import { unlessAborted } from '../../base/unless-aborted.ts';
import { type Credential, credentialFingerprint } from '../../registry/credentials.ts';
import { isRefusal } from '../../registry/http-errors.ts';
import { formatRepository, type Reference, referenceObject } from '../../registry/reference.ts';

/** Consents that are remembered: some images for each of a thousand pods. */
const MAX_CONSENTS = 10_000;
/** An answer that takes longer is not waited for before the question without credentials, or a registry that is away would cost two deadlines. */
const CONTROL_AFTER_MS = 1_000;

export interface Rights {
  /** `unknown`: the registry did not answer, or has no such image any more. */
  readonly verdict: 'granted' | 'refused' | 'unknown';
  readonly reason: string;
  /** Not the registry's word on these credentials, which it said nothing to, but what is made of its answer without: of no use to anybody. */
  readonly isInferred?: boolean;
  /** What the reference names now; when granted. */
  readonly digest?: string;
}

/** One HEAD with nothing but `credential` for the registry itself; answers the digest. Errors as RegistryClient.resolve. */
export type AskRegistry = (
  reference: Reference,
  object: string,
  credential: Credential | undefined,
  signal: AbortSignal,
) => Promise<string>;

export interface RightsOptions {
  readonly ask: AskRegistry;
  readonly clock: Clock;
  /** How long a consent is believed, in milliseconds. */
  readonly ttlMs: number;
  /** How long one question may take, in milliseconds. */
  readonly deadlineMs: number;
}

export class RightsChecker {
  private readonly options: RightsOptions;
  private readonly consents = new LRUCache<string, { untilMs: number; digest: string }>({ max: MAX_CONSENTS });
  private readonly asking = new Map<string, Promise<Rights>>();

  constructor(options: RightsOptions) {
    this.options = options;
  }

  /** Asks, or remembers. With `digest` that manifest is asked for, not what the tag names now. Rejects only with the signal's reason. */
  async check(reference: Reference, digest: string | undefined, credential: Credential | undefined, signal: AbortSignal): Promise<Rights> {
    return unlessAborted(this.asked(reference, digest ?? referenceObject(reference), credential), signal);
  }

  private asked(reference: Reference, object: string, credential: Credential | undefined): Promise<Rights> {
    const key = keyOf(reference, object, credential);
    const consent = this.consents.get(key);
    if (consent !== undefined && this.options.clock.monotonicMs() < consent.untilMs) {
      return Promise.resolve({ verdict: 'granted', reason: 'the registry consented a moment ago', digest: consent.digest });
    }
    // Thirty-two pods of one image ask once. The question has its own deadline, so that nobody's abort spoils it for others.
    let asked = this.asking.get(key);
    if (asked === undefined) {
      asked = this.ask(reference, object, credential).finally(() => this.asking.delete(key));
      this.asking.set(key, asked);
    }
    return asked;
  }

  private async ask(reference: Reference, object: string, credential: Credential | undefined): Promise<Rights> {
    const own = this.question(reference, object, credential);
    if (credential === undefined) return own;
    let timer: NodeJS.Timeout | undefined;
    const slow = new Promise<undefined>((resolve) => {
      timer = setTimeout(() => resolve(undefined), CONTROL_AFTER_MS);
    });
    const early = await Promise.race([own, slow]);
    clearTimeout(timer);
    if (early !== undefined && !early.isSilent) return early;
    const [rights, control] = await Promise.all([own, this.asked(reference, object, undefined)]);
    if (!rights.isSilent || control.verdict === 'unknown') return rights;
    if (control.verdict === 'granted') return { ...control, isInferred: true };
    return { verdict: 'refused', reason: `${rights.reason}; without credentials it answers`, isInferred: true };
  }

  private async question(
    reference: Reference,
    object: string,
    credential: Credential | undefined,
  ): Promise<Rights & { isSilent: boolean }> {
    const { ask, clock, ttlMs, deadlineMs } = this.options;
    const timeout = AbortSignal.timeout(deadlineMs);
    const key = keyOf(reference, object, credential);
    try {
      const digest = await ask(reference, object, credential, timeout);
      const consent = { untilMs: clock.monotonicMs() + ttlMs, digest };
      this.consents.set(key, consent);
      // Who may have what the tag names may have it by its digest too.
      this.consents.set(keyOf(reference, digest, credential), consent);
      return { verdict: 'granted', reason: 'the registry consents', digest, isSilent: false };
    } catch (error) {
      if (!isAppError(error) && !timeout.aborted) throw error;
      const isRefused = isRefusal(error);
      // That there is no such image, or that there are too many questions, is an answer.
      const isAnswer = isAppError(error, 'NotFound') || (isAppError(error) && error.details.status === 429);
      return { verdict: isRefused ? 'refused' : 'unknown', reason: describeError(error), isSilent: !isRefused && !isAnswer };
    }
  }
}

function keyOf(reference: Reference, object: string, credential: Credential | undefined): string {
  return `${formatRepository(reference)} ${object} ${credentialFingerprint(credential)}`;
}

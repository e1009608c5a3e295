/**
 * Which credentials a pull has, and how those that outlive it are kept. Sources in order: what the pull brought, Secrets of its pod, rules,
 * docker's configuration, what people stored. Nothing of one pod is ever given to another: only sources that name the pod itself, or are
 * the node's own, are asked.
 */
import { LRUCache } from 'lru-cache';
import { describeError, isAppError } from '../../base/errors.ts';
import { type Credential, type CredentialSource, credentialFingerprint } from '../../registry/credentials.ts';
import { formatRepository, type Reference } from '../../registry/reference.ts';
import type { NewEntry } from '../../registry/vault/vault.ts';
import type { PodEvents } from '../pods/pod-events.ts';
import type { PodFacts } from '../pods/pod-facts.ts';
import type { AuthConfig, PodSandbox } from '../wire/messages.ts';
import { credentialOf } from './auth-config.ts';
import { askProvider } from './provider.ts';
import type { RuleRenewal, SecretRenewal } from './renewal.ts';
import { type CredentialRule, matchesRule, type RuleBook } from './rules.ts';
import { orderSecrets, type PodSecrets, type SecretCredential } from './secrets.ts';

/** Credentials that are tried for one pull. */
const MAX_CANDIDATES = 8;
/** Complaints that are not repeated. */
const MAX_TOLD = 2_000;

/** Who pulls what, and with what. */
export interface PullSubject {
  readonly pod: PodSandbox | undefined;
  readonly facts: PodFacts | undefined;
  /** As the pod wrote it. */
  readonly image: string;
  readonly reference: Reference;
  readonly auth: AuthConfig | undefined;
}

export interface Candidate {
  readonly credential: Credential;
  readonly origin: 'pull' | 'secret' | 'rule' | 'docker-config' | 'admin';
  /** For people: `Secret team/acr-credential-a`. No secret material. */
  readonly source: string;
  /** How it is kept for reads after the pull; undefined: its source is asked again by whoever reads. */
  readonly entry: NewEntry | undefined;
}

export interface BrokerOptions {
  readonly secrets: PodSecrets | undefined;
  readonly rules: RuleBook;
  /** docker's config.json, if one is configured. */
  readonly dockerConfig: CredentialSource | undefined;
  readonly admin: CredentialSource;
  readonly events: PodEvents;
}

export class CredentialBroker {
  private readonly options: BrokerOptions;
  private readonly told = new LRUCache<string, true>({ max: MAX_TOLD });

  constructor(options: BrokerOptions) {
    this.options = options;
  }

  /**
   * Best first. A source that fails, or that a signal's timeout ends, is told of and passed by, with what it would have had. Rejects only
   * with the reason of a signal that the caller aborted.
   */
  async candidates(subject: PullSubject, signal: AbortSignal): Promise<Candidate[]> {
    const found: Candidate[] = [];
    const secrets = await this.attempt(subject, 'Secrets', signal, () => this.fromSecrets(subject, signal));
    const brought = credentialOf(subject.auth, subject.reference.host);
    if (brought !== undefined) found.push(this.broughtCandidate(subject, brought, secrets ?? []));
    found.push(...(secrets ?? []).map((secret) => this.secretCandidate(subject, secret, secrets ?? [])));
    // What a pull brings suffices in nearly every case, and programs are slow.
    if (brought === undefined) {
      found.push(...((await this.attempt(subject, 'rules', signal, () => this.fromRules(subject, signal))) ?? []));
      found.push(...((await this.attempt(subject, 'node credentials', signal, () => this.fromNode(subject))) ?? []));
    }
    const seen = new Set<string>();
    return found
      .filter(({ credential }) => {
        const fingerprint = credentialFingerprint(credential);
        return !seen.has(fingerprint) && seen.add(fingerprint);
      })
      .slice(0, MAX_CANDIDATES);
  }

  private async attempt<T>(subject: PullSubject, what: string, signal: AbortSignal, work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      const isLate = signal.reason instanceof DOMException && signal.reason.name === 'TimeoutError';
      if (signal.aborted && !isLate) throw signal.reason;
      if (!isAppError(error) && !isLate) throw error;
      this.tell('credential-source-failed', subject, `${what} cannot be used: ${isLate ? 'no answer in time' : describeError(error)}`);
      return undefined;
    }
  }

  private async fromSecrets({ pod, facts, ...subject }: PullSubject, signal: AbortSignal): Promise<SecretCredential[]> {
    const { secrets } = this.options;
    if (secrets === undefined || pod === undefined || facts === undefined) return [];
    const { namespace } = pod;
    const names = await secrets.namesFor({ namespace, serviceAccount: facts.serviceAccount, pullSecrets: facts.pullSecrets }, signal);
    const { credentials, ignored } = await secrets.read(namespace, names, signal);
    for (const { secret, reason } of ignored) {
      this.tell('secret-ignored', { ...subject, pod, facts }, `Secret ${namespace}/${secret} is not used: ${reason}`);
    }
    return orderSecrets(credentials, formatRepository(subject.reference));
  }

  private async fromRules(subject: PullSubject, signal: AbortSignal): Promise<Candidate[]> {
    const { pod, facts, reference } = subject;
    if (pod === undefined) return [];
    const imageName = formatRepository(reference);
    const who = { namespace: pod.namespace, serviceAccount: facts?.serviceAccount, imageName };
    const found: Candidate[] = [];
    for (const rule of (await this.options.rules.current()).filter((one) => matchesRule(one, who)).slice(0, MAX_CANDIDATES)) {
      const candidate = await this.attempt(subject, `rule ${rule.name}`, signal, () => this.byRule(rule, who, reference, signal));
      if (candidate !== undefined) found.push(candidate);
    }
    return found;
  }

  private async byRule(
    rule: CredentialRule,
    who: { namespace: string; serviceAccount: string | undefined; imageName: string },
    { host, repository }: Reference,
    signal: AbortSignal,
  ): Promise<Candidate | undefined> {
    const provided = await askProvider(rule, { ...who, host }, signal);
    if (provided === undefined) return undefined;
    const { namespace } = who;
    const serviceAccount = who.serviceAccount ?? null;
    const renewal: RuleRenewal = {
      kind: 'rule',
      rule: rule.name,
      namespace,
      serviceAccount,
      host,
      repository,
      lifeMs: provided.lifeMs,
    };
    return {
      credential: provided.credential,
      origin: 'rule',
      source: `rule ${rule.name}`,
      entry: {
        id: `rule:${rule.name}:${namespace}:${serviceAccount ?? ''}:${who.imageName}`,
        origin: 'rule',
        prefix: who.imageName,
        isExact: true,
        credential: provided.credential,
        expiresMs: Date.now() + provided.lifeMs,
        renewal,
      },
    };
  }

  private async fromNode({ reference }: PullSubject): Promise<Candidate[]> {
    const { dockerConfig, admin } = this.options;
    const { host, repository } = reference;
    const found: Candidate[] = [];
    const docker = await dockerConfig?.(host, repository);
    if (docker !== undefined)
      found.push({ credential: docker, origin: 'docker-config', source: "docker's configuration", entry: undefined });
    const stored = await admin(host, repository);
    if (stored !== undefined) found.push({ credential: stored, origin: 'admin', source: 'what was stored by hand', entry: undefined });
    return found;
  }

  /** What the pull brought; renewable when a Secret of its pod holds the same. */
  private broughtCandidate(subject: PullSubject, credential: Credential, secrets: readonly SecretCredential[]): Candidate {
    const fingerprint = credentialFingerprint(credential);
    const same = secrets.find((secret) => credentialFingerprint(secret.credential) === fingerprint);
    if (same !== undefined) return this.secretCandidate(subject, same, secrets);
    const prefix = formatRepository(subject.reference);
    // Of each namespace its own: what one brings takes nothing from another's containers.
    const id = `pull:${subject.pod?.namespace ?? ''}:${prefix}`;
    const entry: NewEntry = { id, origin: 'pull', prefix, isExact: true, credential, expiresMs: null, renewal: null };
    return { credential, origin: 'pull', source: 'the pull itself', entry };
  }

  private secretCandidate({ pod, reference }: PullSubject, chosen: SecretCredential, all: readonly SecretCredential[]): Candidate {
    const { host, repository } = reference;
    const prefix = formatRepository(reference);
    const namespace = pod?.namespace ?? '';
    const secrets = [...new Set(all.map(({ secret }) => secret))];
    const renewal: SecretRenewal = { kind: 'secret', namespace, secrets, host, repository };
    const { credential } = chosen;
    return {
      credential,
      origin: 'secret',
      source: `Secret ${namespace}/${chosen.secret}`,
      entry: { id: `secret:${namespace}:${prefix}`, origin: 'secret', prefix, isExact: true, credential, expiresMs: null, renewal },
    };
  }

  /** Once for each complaint. */
  private tell(type: string, { pod, image }: PullSubject, message: string): void {
    const key = `${pod?.namespace ?? ''} ${type} ${message}`;
    if (this.told.has(key)) return;
    this.told.set(key, true);
    this.options.events.add(type, pod === undefined ? image : `${pod.namespace}/${pod.name}`, message);
  }
}

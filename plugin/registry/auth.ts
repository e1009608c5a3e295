/**
 * Which Authorization header goes with a request. The first request to a repository goes without; the registry's challenge then says how
 * to log in, and the answer is kept per endpoint, repository and action, so that thousands of reads log in once.
 *
 *   no entry ── 401, challenge ──► log in (one at a time) ──► header ── 3/4 of its life ──► renewed in the background
 *                                                               └── 401 ──► renewed once
 */
import { LRUCache } from 'lru-cache';
import type { Clock } from '../base/clock.ts';
import { AppError, describeError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { LogRepeater } from '../base/log-repeater.ts';
import { type Challenge, parseChallenges } from './challenge.ts';
import { basicHeader, type Credential, type CredentialSource, credentialFingerprint } from './credentials.ts';
import type { Endpoint } from './hosts.ts';
import type { Headers } from './http-errors.ts';
import { CREDENTIAL_RECHECK_MS, MAX_AUTHORIZATIONS, MAX_TOKEN_FAILURES, TOKEN_FAILURE_HOLD_MS, TOKEN_OUTAGE_HOLD_MS } from './limits.ts';
import { formatRepository, type Repository } from './reference.ts';
import { excessOf, requestToken, type Token, type TokenRequest } from './token.ts';
import type { Transport } from './transport.ts';

export type Action = 'pull' | 'push' | 'delete';

/** What a request may do: nothing more is ever asked for. */
export interface Access {
  readonly repository: Repository;
  readonly actions: readonly Action[];
  /** Also read here: the source of a cross-repository mount. */
  readonly alsoPull?: string;
}

interface Authorization {
  readonly header: string;
  /** How it was got, to get it again without a 401. */
  readonly login: Login;
  readonly credential: string;
  /** What it was got with; secret. */
  readonly used: Credential | undefined;
  readonly renewAtMs: number;
  readonly expiresAtMs: number;
  credentialCheckedMs: number;
}

type Login = { readonly kind: 'basic' } | ({ readonly kind: 'bearer' } & TokenRequest);

interface StoredToken {
  readonly token: Token;
  readonly gotMs: number;
}

export interface AuthenticatorOptions {
  readonly transport: Transport;
  readonly credentials: CredentialSource;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly userAgent: string;
  /** Told of each new token that allows more than was asked for, and what. */
  readonly onExcess?: (repository: Repository, actions: string) => void;
}

export class Authenticator {
  private readonly options: AuthenticatorOptions;
  private readonly authorizations = new LRUCache<string, Authorization>({ max: MAX_AUTHORIZATIONS });
  /** Tokens by realm, service, scope and credential: mirrors and repositories may share one. */
  private readonly tokens = new LRUCache<string, StoredToken>({ max: MAX_AUTHORIZATIONS });
  private readonly failures = new LRUCache<string, { error: AppError; untilMs: number }>({ max: MAX_TOKEN_FAILURES });
  private readonly pendingTokens = new Map<string, Promise<StoredToken>>();
  private readonly renewing = new Set<string>();
  /** Every request in the last quarter of a token's life tries to renew it. */
  private readonly log: LogRepeater;

  constructor(options: AuthenticatorOptions) {
    this.options = options;
    this.log = new LogRepeater(options.logger, options.clock);
  }

  /** The header for the next request, or undefined to go without. Usually answers at once. Rejects with what logging in throws. */
  headerFor(endpoint: Endpoint, access: Access): string | undefined | Promise<string> {
    const key = keyOf(endpoint, access);
    const known = this.authorizations.get(key);
    if (known === undefined) return undefined;
    const nowMs = this.options.clock.monotonicMs();
    if (nowMs - known.credentialCheckedMs >= CREDENTIAL_RECHECK_MS) {
      known.credentialCheckedMs = nowMs;
      return this.recheck(key, known, endpoint, access);
    }
    if (nowMs >= known.expiresAtMs) return this.recheck(key, known, endpoint, access);
    if (nowMs >= known.renewAtMs) this.renewEarly(key, known, endpoint, access);
    return known.header;
  }

  /** Logs in again if the credentials changed or the token is over. New ones that are refused take no token away that still works. */
  private async recheck(key: string, known: Authorization, endpoint: Endpoint, access: Access): Promise<string> {
    const credential = await this.credentialFor(endpoint, access);
    const nowMs = this.options.clock.monotonicMs();
    if (nowMs >= known.expiresAtMs || credentialFingerprint(credential) !== known.credential) {
      try {
        return (await this.logIn(key, known.login, credential, endpoint, access)).header;
      } catch (error) {
        const isOver = this.options.clock.monotonicMs() >= known.expiresAtMs;
        if (isOver || credential === undefined || !isAppError(error, 'Unauthenticated')) throw error;
        return known.header;
      }
    }
    if (nowMs >= known.renewAtMs) this.renewEarly(key, known, endpoint, access);
    return known.header;
  }

  private renewEarly(key: string, known: Authorization, endpoint: Endpoint, access: Access): void {
    if (this.renewing.has(key)) return;
    this.renewing.add(key);
    const renewal = async (): Promise<void> => {
      const credential = await this.credentialFor(endpoint, access);
      this.forgetToken(known.login, credential);
      await this.logIn(key, known.login, credential, endpoint, access);
    };
    renewal()
      .catch((error: unknown) =>
        this.log.write('warn', { endpoint: endpoint.key, err: describeError(error) }, 'renewing a registry token early failed'),
      )
      .finally(() => this.renewing.delete(key));
  }

  /**
   * After a 401: the header to try once more with. `sentHeader` is what the refused request carried. Throws Unauthenticated when the
   * challenge cannot be answered, and what logging in throws.
   */
  async answerChallenge(endpoint: Endpoint, access: Access, headers: Headers, sentHeader: string | undefined): Promise<string> {
    const key = keyOf(endpoint, access);
    const known = this.authorizations.get(key);
    // Another request was refused too and has renewed it meanwhile.
    if (known !== undefined && known.header !== sentHeader && sentHeader !== undefined) return known.header;
    const credential = await this.credentialFor(endpoint, access);
    const login = chooseLogin(parseChallenges(headers['www-authenticate']), credential, access);
    if (login === undefined) throw this.unanswerable(access, endpoint, credential);
    if (sentHeader !== undefined) this.forgetToken(login, credential, sentHeader);
    return (await this.logIn(key, login, credential, endpoint, access)).header;
  }

  /** The registry refuses a header that was made a moment ago: another source, or another pod, may have better credentials. */
  refused(endpoint: Endpoint, access: Access, header: string): void {
    const known = this.authorizations.get(keyOf(endpoint, access));
    if (known?.header === header && known.used !== undefined) this.options.credentials.refused?.(known.used);
  }

  /** Credentials changed: the next request asks their source. */
  forgetAll(): void {
    this.authorizations.clear();
    this.tokens.clear();
    this.failures.clear();
  }

  private credentialFor(endpoint: Endpoint, access: Access): Promise<Credential | undefined> {
    return this.options.credentials(endpoint.credentialHost, access.repository.repository);
  }

  private unanswerable(access: Access, endpoint: Endpoint, credential: Credential | undefined): AppError {
    return new AppError('Unauthenticated', {
      op: 'log in for',
      subject: formatRepository(access.repository),
      what: `${endpoint.key} wants credentials; ${credential === undefined ? 'there are none for it' : 'it offers no way that fits those there are'}`,
      details: { status: 401, endpoint: endpoint.key },
    });
  }

  private async logIn(
    key: string,
    login: Login,
    credential: Credential | undefined,
    endpoint: Endpoint,
    access: Access,
  ): Promise<Authorization> {
    const nowMs = this.options.clock.monotonicMs();
    const base = { login, credential: credentialFingerprint(credential), used: credential, credentialCheckedMs: nowMs };
    let authorization: Authorization;
    if (credential !== undefined && 'registryToken' in credential) {
      authorization = { ...base, header: `Bearer ${credential.registryToken}`, renewAtMs: Infinity, expiresAtMs: Infinity };
    } else if (login.kind === 'basic') {
      if (credential === undefined || !('password' in credential)) {
        this.authorizations.delete(key);
        throw this.unanswerable(access, endpoint, credential);
      }
      const header = basicHeader(credential.username, credential.password);
      authorization = { ...base, header, renewAtMs: Infinity, expiresAtMs: Infinity };
    } else {
      const { token, gotMs } = await this.tokenFor(login, credential, endpoint, access);
      authorization = {
        ...base,
        header: `Bearer ${token.value}`,
        renewAtMs: gotMs + token.lifetimeMs * 0.75,
        expiresAtMs: gotMs + token.lifetimeMs,
      };
    }
    this.authorizations.set(key, authorization);
    return authorization;
  }

  private async tokenFor(
    login: TokenRequest,
    credential: Credential | undefined,
    endpoint: Endpoint,
    access: Access,
  ): Promise<StoredToken> {
    const key = tokenKey(login, credential);
    const nowMs = this.options.clock.monotonicMs();
    const stored = this.tokens.get(key);
    if (stored !== undefined && nowMs < stored.gotMs + stored.token.lifetimeMs) return stored;
    const failure = this.failures.get(key);
    if (failure !== undefined && nowMs < failure.untilMs) throw failure.error;
    let pending = this.pendingTokens.get(key);
    if (pending === undefined) {
      pending = this.fetchToken(key, login, credential, endpoint, access).finally(() => this.pendingTokens.delete(key));
      this.pendingTokens.set(key, pending);
    }
    return pending;
  }

  private async fetchToken(
    key: string,
    login: TokenRequest,
    credential: Credential | undefined,
    endpoint: Endpoint,
    access: Access,
  ): Promise<StoredToken> {
    const { transport, clock, userAgent } = this.options;
    try {
      // Shared by all who wait, so no caller's abort ends it; its own deadline does.
      const token = await requestToken(login, credential, {
        transport,
        tls: endpoint.tls,
        connectTimeoutMs: endpoint.connectTimeoutMs,
        registryOrigin: endpoint.origin,
        subject: formatRepository(access.repository),
        userAgent,
        nowMs: () => clock.nowMs(),
      });
      const stored = { token, gotMs: clock.monotonicMs() };
      this.tokens.set(key, stored);
      const excess = access.actions.includes('push') ? undefined : excessOf(token.value);
      if (excess !== undefined) this.options.onExcess?.(access.repository, excess);
      return stored;
    } catch (error) {
      if (isAppError(error, 'Unauthenticated') && credential !== undefined) this.options.credentials.refused?.(credential);
      if (isAppError(error)) {
        const holdMs = isAppError(error, 'Unavailable', 'DeadlineExceeded') ? TOKEN_OUTAGE_HOLD_MS : TOKEN_FAILURE_HOLD_MS;
        this.failures.set(key, { error, untilMs: clock.monotonicMs() + holdMs });
      }
      throw error;
    }
  }

  /** Drops a stored token: always, or only when it is the one that `refusedHeader` carried. */
  private forgetToken(login: Login, credential: Credential | undefined, refusedHeader?: string): void {
    if (login.kind !== 'bearer') return;
    const key = tokenKey(login, credential);
    const stored = this.tokens.get(key);
    if (stored !== undefined && (refusedHeader === undefined || `Bearer ${stored.token.value}` === refusedHeader)) this.tokens.delete(key);
  }
}

function keyOf(endpoint: Endpoint, access: Access): string {
  return `${endpoint.key}\n${access.repository.host}\n${access.repository.repository}\n${access.actions.join()}\n${access.alsoPull ?? ''}`;
}

function tokenKey(request: TokenRequest, credential: Credential | undefined): string {
  return [request.realm, request.service ?? '', ...request.scopes, credentialFingerprint(credential)].join('\n');
}

/** Bearer first: it also works without credentials. Basic only with a user name. */
function chooseLogin(challenges: readonly Challenge[], credential: Credential | undefined, access: Access): Login | undefined {
  const bearer = challenges.find((challenge) => challenge.scheme === 'bearer' && challenge.parameters.has('realm'));
  if (bearer !== undefined) {
    return {
      kind: 'bearer',
      realm: bearer.parameters.get('realm')!,
      service: bearer.parameters.get('service'),
      scopes: scopesFor(bearer.parameters.get('scope'), access),
    };
  }
  const isBasic = challenges.some((challenge) => challenge.scheme === 'basic');
  return isBasic && credential !== undefined && 'password' in credential ? { kind: 'basic' } : undefined;
}

/**
 * The registry's own scope, since a mirror may know the repository under a longer name, cut down to the actions that are needed: a
 * registry that asks for push on a read does not get it.
 */
export function scopesFor(challenged: string | undefined, access: Access): string[] {
  const wanted = new Set<string>(access.actions);
  const scopes = (challenged ?? '').split(' ').flatMap((scope) => {
    const match = /^repository(?:\([a-z]+\))?:([^\s]{1,512}):([a-z*,]{1,64})$/.exec(scope);
    if (match === null || match[1] === access.alsoPull) return [];
    return `repository:${match[1]}:${access.actions.join()}`;
  });
  const own = scopes.length > 0 ? scopes.slice(0, 4) : [`repository:${access.repository.repository}:${[...wanted].join()}`];
  return access.alsoPull === undefined ? own : [...own, `repository:${access.alsoPull}:pull`];
}

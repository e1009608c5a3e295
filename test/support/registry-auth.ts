/** Login of the in-memory registry: Basic, or Bearer with a token service at `/token` (GET with Basic, POST with a refresh token). */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { Answer } from './registry-faults.ts';

export interface TokenServiceOptions {
  readonly kind: 'basic' | 'bearer';
  readonly username: string;
  readonly password: string;
  /** Bearer: also taken in the place of the password. */
  readonly refreshToken?: string;
  /** Said in `expires_in`. Default 300. */
  readonly lifetimeS?: number;
  /** Pulls need no user (they still need a token with Bearer). */
  readonly anonymousPull?: boolean;
  /** Put before the repository in scopes, as a proxying registry does. */
  readonly scopePrefix?: string;
  /** Actions that the challenge asks for, whatever the request was. */
  readonly challengeActions?: string;
  /** Instead of the registry's own `/token`. */
  readonly realm?: string;
}

/** Which repository and action a request needs. */
function needOf(request: IncomingMessage, url: URL): { repository: string; action: 'pull' | 'push' | 'delete' } {
  const match = /^\/(?:.*?\/)?v2\/(.+?)\/(?:blobs|manifests|tags|referrers)(?:\/|$)/.exec(url.pathname);
  const isRead = request.method === 'GET' || request.method === 'HEAD';
  const action = request.method === 'DELETE' && !url.pathname.includes('/uploads/') ? 'delete' : isRead ? 'pull' : 'push';
  return { repository: match?.[1] ?? '', action };
}

export class TokenService {
  private readonly options: TokenServiceOptions;
  /** Token → scopes it is good for. */
  readonly issued = new Map<string, ReadonlySet<string>>();
  password: string;

  constructor(options: TokenServiceOptions) {
    this.options = options;
    this.password = options.password;
  }

  /** Tokens handed out so far stop working. */
  expireTokens(): void {
    this.issued.clear();
  }

  private isUser(header: string | undefined): boolean {
    return header === `Basic ${Buffer.from(`${this.options.username}:${this.password}`).toString('base64')}`;
  }

  /** The 401 for a request that lacks what it needs, or undefined. */
  check(request: IncomingMessage, url: URL, origin: string): Answer | undefined {
    const { kind, anonymousPull, scopePrefix = '', challengeActions, realm = `${origin}/token` } = this.options;
    const { repository, action } = needOf(request, url);
    const header = request.headers.authorization;
    if (kind === 'basic') {
      if (this.isUser(header) || (anonymousPull === true && action === 'pull')) return undefined;
      return refusal('Basic realm="fault registry"');
    }
    const scopes = this.issued.get((header ?? '').replace(/^Bearer /, ''));
    if (scopes?.has(`repository:${scopePrefix}${repository}:${action}`)) return undefined;
    const asked = challengeActions ?? (action === 'pull' ? 'pull' : action === 'push' ? 'pull,push' : 'delete');
    return refusal(`Bearer realm="${realm}",service="fault-registry",scope="repository:${scopePrefix}${repository}:${asked}"`);
  }

  /** The token service itself. */
  async answer(request: IncomingMessage, url: URL): Promise<Answer> {
    const chunks: Buffer[] = [];
    for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
    const form = new URLSearchParams(Buffer.concat(chunks).toString());
    const isRefresh = request.method === 'POST' && form.get('refresh_token') === this.options.refreshToken;
    const isUser = isRefresh || this.isUser(request.headers.authorization);
    const asked = request.method === 'POST' ? (form.get('scope') ?? '').split(' ') : url.searchParams.getAll('scope');
    const actionsOf = (scope: string): string[] => scope.slice(scope.lastIndexOf(':') + 1).split(',');
    const isPublic = this.options.anonymousPull === true && asked.every((scope) => actionsOf(scope).join() === 'pull');
    const hasCredentials = request.headers.authorization !== undefined || request.method === 'POST';
    if (!isUser && (hasCredentials || !isPublic)) return refusal('Basic realm="token"');
    const token = randomUUID();
    const scopes = asked.flatMap((scope) => actionsOf(scope).map((action) => `${scope.slice(0, scope.lastIndexOf(':'))}:${action}`));
    this.issued.set(token, new Set(scopes));
    const body = Buffer.from(JSON.stringify({ token, expires_in: this.options.lifetimeS ?? 300 }));
    return { status: 200, headers: { 'content-type': 'application/json', 'content-length': String(body.length) }, body };
  }
}

function refusal(challenge: string): Answer {
  const body = Buffer.from('{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}');
  return { status: 401, headers: { 'www-authenticate': challenge, 'content-length': String(body.length) }, body };
}

/**
 * Asks the source of a rule for credentials: a kubelet credential provider, a service on a unix socket that answers the same documents, or a
 * docker credential helper. Source: Kubernetes, credentialprovider.kubelet.k8s.io (CredentialProviderRequest, CredentialProviderResponse).
 * What programs write to standard error is dropped, since it may quote secrets.
 */
import { spawn } from 'node:child_process';
import { Client } from 'undici';
import { z } from 'zod';
import { parseDuration } from '../../base/config/option.ts';
import { AppError } from '../../base/errors.ts';
import { KIB } from '../../base/units.ts';
import { runCredentialHelper } from '../../registry/credential-helper.ts';
import type { Credential } from '../../registry/credentials.ts';
import { normaliseKey } from '../../registry/docker-config.ts';
import { longestMatch } from './image-pattern.ts';
import type { CredentialRule } from './rules.ts';

/** kubelet gives its providers a minute; a pull waits here for less. */
const PROVIDER_MS = 15_000;
const MAX_ANSWER_BYTES = 256 * KIB;
/** An answer that names no life is asked for again after this. */
export const DEFAULT_LIFE_MS = 10 * 60_000;
/** A shorter life than this cannot be kept up with. */
const MIN_LIFE_MS = 1_000;
const MAX_LIFE_MS = 30 * 24 * 3_600_000;

export interface Provided {
  readonly credential: Credential;
  /** Milliseconds that it lasts. */
  readonly lifeMs: number;
}

/** What is asked for. `imageName` is `host/repository`: kubelet, too, asks its providers without tag and digest. */
export interface ProviderQuery {
  readonly host: string;
  readonly imageName: string;
  readonly namespace: string;
  readonly serviceAccount: string | undefined;
}

const responseSchema = z.object({
  kind: z.literal('CredentialProviderResponse'),
  cacheDuration: z.string().max(64).nullish(),
  auth: z
    .record(
      z.string().max(1024),
      z.object({
        username: z.string().max(1024),
        password: z
          .string()
          .min(1)
          .max(64 * KIB),
      }),
    )
    .nullish(),
});

/** Go's duration text; its units are ours. Sub-milliseconds and fractions do not occur for lives of credentials. */
function lifeOf(text: string | null | undefined): number {
  const parsed = text == null ? undefined : parseDuration(text);
  return parsed === undefined || parsed === 0 ? DEFAULT_LIFE_MS : Math.min(Math.max(parsed, MIN_LIFE_MS), MAX_LIFE_MS);
}

function parseResponse(text: string, subject: string, imageName: string): Provided | undefined {
  const refuse = (what: string): AppError => new AppError('FailedPrecondition', { op: 'ask', subject, what });
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch {
    // The parser's message would quote the answer.
    throw refuse('its answer is not JSON');
  }
  const parsed = responseSchema.safeParse(document);
  if (!parsed.success) throw refuse('its answer is no CredentialProviderResponse');
  // Keys are written as in docker's configuration, as kubelet reads them.
  const entries = Object.entries(parsed.data.auth ?? {}).map(([key, auth]) => [normaliseKey(key), auth] as const);
  const best = longestMatch(entries, imageName);
  if (best === undefined) return undefined;
  const { username, password } = best[1];
  return { credential: { username, password }, lifeMs: lifeOf(parsed.data.cacheDuration) };
}

/**
 * Credentials by a rule; undefined when its source has none for the image. Errors: FailedPrecondition (cannot be run, fails, answers
 * nonsense), DeadlineExceeded, Unavailable (socket; a docker helper that fails), the signal's reason.
 */
export async function askProvider(rule: CredentialRule, query: ProviderQuery, signal: AbortSignal): Promise<Provided | undefined> {
  if (rule.source === 'docker-helper') {
    const credential = await runCredentialHelper(rule.helper, query.host === 'docker.io' ? 'https://index.docker.io/v1/' : query.host);
    return credential === undefined ? undefined : { credential, lifeMs: DEFAULT_LIFE_MS };
  }
  const subject = rule.source === 'plugin' ? rule.command : rule.socket;
  const version = rule.source === 'plugin' ? rule.api_version : 'v1';
  const document = {
    apiVersion: `credentialprovider.kubelet.k8s.io/${version}`,
    kind: 'CredentialProviderRequest',
    image: query.imageName,
  };
  const limit = AbortSignal.any([signal, AbortSignal.timeout(PROVIDER_MS)]);
  try {
    const text =
      rule.source === 'plugin'
        ? await runPlugin(rule, JSON.stringify(document), limit)
        : await askSocket(rule.socket, { ...document, namespace: query.namespace, serviceAccount: query.serviceAccount ?? '' }, limit);
    return parseResponse(text, subject, query.imageName);
  } catch (error) {
    if (signal.aborted) throw signal.reason;
    if (limit.aborted) throw new AppError('DeadlineExceeded', { op: 'ask', subject, what: `no answer within ${PROVIDER_MS} ms` });
    throw error;
  }
}

type PluginRule = Extract<CredentialRule, { source: 'plugin' }>;

function runPlugin(rule: PluginRule, request: string, signal: AbortSignal): Promise<string> {
  const fail = (what: string, cause?: unknown): AppError =>
    new AppError('FailedPrecondition', { op: 'ask', subject: rule.command, what, ...(cause === undefined ? {} : { cause }) });
  return new Promise((resolve, reject) => {
    const child = spawn(rule.command, rule.args, {
      stdio: ['pipe', 'pipe', 'ignore'],
      env: { PATH: process.env.PATH, HOME: process.env.HOME, ...rule.env },
      signal,
      killSignal: 'SIGKILL',
    });
    const chunks: Buffer[] = [];
    let sizeBytes = 0;
    child.on('error', (cause) => reject(fail('cannot be run', cause)));
    child.stdout.on('data', (chunk: Buffer) => {
      sizeBytes += chunk.length;
      if (sizeBytes <= MAX_ANSWER_BYTES) chunks.push(chunk);
      else {
        child.kill('SIGKILL');
        reject(fail(`answered more than ${MAX_ANSWER_BYTES} bytes`));
      }
    });
    // A program that does not read its input breaks the pipe; its exit says the rest.
    child.stdin.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') reject(fail('its input failed', error));
    });
    child.on('close', (code) => {
      if (code === 0) resolve(Buffer.concat(chunks).toString('utf8'));
      else reject(fail(`ended with ${code ?? 'a signal'}`));
    });
    child.stdin.end(request);
  });
}

async function askSocket(socketPath: string, request: object, signal: AbortSignal): Promise<string> {
  const client = new Client('http://localhost', { socketPath });
  try {
    const { statusCode, body } = await client.request({
      method: 'POST',
      path: '/credentials',
      headers: { 'content-type': 'application/json', accept: 'application/json' },
      body: JSON.stringify(request),
      signal,
    });
    const chunks: Uint8Array[] = [];
    let sizeBytes = 0;
    for await (const chunk of body as AsyncIterable<Uint8Array>) {
      sizeBytes += chunk.length;
      if (sizeBytes > MAX_ANSWER_BYTES) {
        throw new AppError('FailedPrecondition', { op: 'ask', subject: socketPath, what: `answered more than ${MAX_ANSWER_BYTES} bytes` });
      }
      chunks.push(chunk);
    }
    if (statusCode !== 200) throw new AppError('FailedPrecondition', { op: 'ask', subject: socketPath, what: `answered ${statusCode}` });
    return Buffer.concat(chunks).toString('utf8');
  } catch (error) {
    if (error instanceof AppError) throw error;
    throw new AppError('Unavailable', { op: 'ask', subject: socketPath, what: 'does not answer', cause: error });
  } finally {
    await client.destroy();
  }
}

/** What tests of the registry client share: random blobs, a client with short limits, and how a failure is looked at. */
import { randomBytes } from 'node:crypto';
import { type Clock, systemClock } from '../../plugin/base/clock.ts';
import { AppError } from '../../plugin/base/errors.ts';
import { RegistryClient, type RegistryClientOptions } from '../../plugin/registry/client.ts';
import type { Repository } from '../../plugin/registry/reference.ts';

/** A client that gives up on silence after 20 s (a busy machine needs longer than one thinks) and knows no proxies. */
export function testClient(options: RegistryClientOptions = {}): RegistryClient {
  return new RegistryClient({ env: {}, headersTimeoutMs: 20_000, bodyIdleTimeoutMs: 20_000, ...options });
}

/** For clients whose pauses between attempts are not what a test is about. */
export const hastyClock: Clock = { ...systemClock, sleep: async () => {} };

/** Bytes that differ at each place. */
export function randomBlob(sizeBytes: number): Buffer {
  return randomBytes(sizeBytes);
}

export function repositoryOf(registry: { readonly host: string }, repository = 'team/app'): Repository {
  return { host: registry.host, repository };
}

/** The AppError that a promise rejects with; anything else fails the test. */
export async function failureOf(promise: Promise<unknown>): Promise<AppError> {
  try {
    await promise;
  } catch (error) {
    if (error instanceof AppError) return error;
    throw new Error('rejected with something else than an AppError', { cause: error });
  }
  throw new Error('did not fail');
}

/** Polls until `condition` holds; fails after `timeoutMs`. */
export async function until(condition: () => boolean, what: string, timeoutMs = 30_000): Promise<void> {
  const endMs = Date.now() + timeoutMs;
  while (!condition()) {
    if (Date.now() > endMs) throw new Error(`waited ${timeoutMs} ms in vain: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

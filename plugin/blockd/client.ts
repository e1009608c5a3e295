/**
 * The control plane's door to blockd. What changes devices or blobs is idempotent and asked again while blockd is being replaced; what only
 * looks fails at once. Both fail with Unavailable while blockd is away.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { Agent, request } from 'undici';
import { AppError } from '../base/errors.ts';
import type { BlobSource, DeviceSpec } from '../file/device-spec.ts';
import type { StoredBlob } from '../file/store/chunk-store.ts';
import type { DeviceStatus } from './devices.ts';
import type { DataPlaneEvent } from './events.ts';
import type { Grant } from './grants.ts';
import type { PinnedBlob } from './pins.ts';
import type { DataPlaneStats } from './stats.ts';

/** An answer is a list of devices at most: 4096 of them, 1 KiB each. */
const MAX_ANSWER_BYTES = 8 * 1024 * 1024;

/** The keeper replaces a blockd that is gone, stopped or spinning within five seconds. */
const REPLACEMENT_LIMIT_MS = 6000;
const ASK_AGAIN_MS = 50;

export class BlockdClient {
  private readonly agent: Agent;

  constructor(socketPath: string) {
    // Calls wait for the registry as long as their signal lets them; the connection itself is local.
    this.agent = new Agent({ connect: { socketPath, timeout: 2000 }, headersTimeout: 0, bodyTimeout: 0, connections: 64 });
  }

  /** Serves the device and answers the path of its file. Idempotent for equal ids. */
  async attach(spec: DeviceSpec, signal: AbortSignal): Promise<DeviceStatus> {
    return (await this.insist('POST', '/devices', spec.image, signal, spec)) as DeviceStatus;
  }

  /** Opens every layer without making a device. */
  async check(spec: DeviceSpec, signal: AbortSignal): Promise<{ deviceSizeBytes: number }> {
    return (await this.insist('POST', '/check', spec.image, signal, spec)) as { deviceSizeBytes: number };
  }

  /** Lets the device go when its last user does; an unknown one is no error. */
  async detach(id: string, signal: AbortSignal): Promise<void> {
    await this.insist('DELETE', `/devices/${encodeURIComponent(id)}`, id, signal);
  }

  async devices(signal: AbortSignal): Promise<DeviceStatus[]> {
    return (await this.call('GET', '/devices', 'devices', signal)) as DeviceStatus[];
  }

  /** Makes a whole blob local and checks its digest; answers the path of its bytes and how many were fetched. */
  async fetchWhole(source: BlobSource, signal: AbortSignal): Promise<{ path: string; fetchedBytes: number }> {
    return (await this.insist('POST', '/fill', source.digest, signal, source)) as { path: string; fetchedBytes: number };
  }

  /** Makes these the blobs that an owner pins; see Pins.set. */
  async pin(owner: string, blobs: readonly BlobSource[], signal: AbortSignal): Promise<void> {
    await this.insist('PUT', `/pins/${owner}`, owner, signal, blobs);
  }

  /** Makes a pinned blob whole and checks its digest, `isCheckedAgain`: although it was checked before. */
  async fillPinned(
    owner: string,
    source: BlobSource,
    signal: AbortSignal,
    { isCheckedAgain }: { isCheckedAgain: boolean },
  ): Promise<{ path: string; fetchedBytes: number }> {
    const path = `/pins/${owner}/fill?again=${isCheckedAgain}`;
    return (await this.insist('POST', path, source.digest, signal, source)) as { path: string; fetchedBytes: number };
  }

  /** Bytes here, by digest, of the blobs that {@link fillPinned} was asked for; starts again when blockd is replaced. */
  async filledBytes(owner: string, signal: AbortSignal): Promise<Record<string, number>> {
    return (await this.call('GET', `/pins/${owner}/filled`, owner, signal)) as Record<string, number>;
  }

  /** Lets blockd reach repositories with these credentials and transport rules, for a minute. Secret: goes over the socket alone. */
  async grant(owner: string, grant: Grant, signal: AbortSignal): Promise<void> {
    await this.insist('PUT', `/pins/${owner}/grant`, owner, signal, grant);
  }

  async pinned(owner: string, signal: AbortSignal): Promise<PinnedBlob[]> {
    return (await this.insist('GET', `/pins/${owner}`, owner, signal)) as PinnedBlob[];
  }

  async pinOwners(signal: AbortSignal): Promise<string[]> {
    return (await this.insist('GET', '/pins', 'pins', signal)) as string[];
  }

  /** Lets go of what an owner pins; an unknown owner is no error. */
  async unpin(owner: string, signal: AbortSignal): Promise<void> {
    await this.insist('DELETE', `/pins/${owner}`, owner, signal);
  }

  /** Of these digests, those of which a whole and verified blob is on disk. */
  async wholeOf(digests: readonly string[], signal: AbortSignal): Promise<string[]> {
    return (await this.insist('POST', '/whole', 'blobs', signal, digests)) as string[];
  }

  async stats(signal: AbortSignal): Promise<DataPlaneStats> {
    return (await this.call('GET', '/stats', 'stats', signal)) as DataPlaneStats;
  }

  /** Blobs of the store, at most `limit`; see ChunkStore.list. */
  async blobs(limit: number, signal: AbortSignal): Promise<StoredBlob[]> {
    return (await this.call('GET', `/blobs?limit=${limit}`, 'blobs', signal)) as StoredBlob[];
  }

  /** Removes idle blobs until `bytes` are freed or none is left. */
  async evict(bytes: number, signal: AbortSignal): Promise<{ blobs: number; bytes: number }> {
    return (await this.call('POST', '/evict', 'store', signal, { bytes })) as { blobs: number; bytes: number };
  }

  /** Events after `sequence`, oldest first. */
  async events(sequence: number, signal: AbortSignal): Promise<DataPlaneEvent[]> {
    return (await this.call('GET', `/events?since=${sequence}`, 'events', signal)) as DataPlaneEvent[];
  }

  async close(): Promise<void> {
    await this.agent.destroy();
  }

  /** Calls until there is an answer, or blockd has been away for longer than a replacement takes. */
  private async insist(...call: Parameters<BlockdClient['call']>): Promise<unknown> {
    const [, , , signal] = call;
    let awaySinceMs: number | undefined;
    for (;;) {
      const askedAtMs = performance.now();
      try {
        return await this.call(...call);
      } catch (error) {
        if (!(error instanceof BlockdAway) || signal.aborted) throw error;
        // A call that was under way for long when blockd died says nothing about how long it is away.
        const diedAtMs = performance.now();
        if (awaySinceMs === undefined || diedAtMs - askedAtMs > REPLACEMENT_LIMIT_MS) awaySinceMs = diedAtMs;
        if (diedAtMs - awaySinceMs > REPLACEMENT_LIMIT_MS) throw error;
        await pauseUnlessAborted(signal, error);
      }
    }
  }

  private async call(
    method: 'GET' | 'POST' | 'PUT' | 'DELETE',
    path: string,
    subject: string,
    signal: AbortSignal,
    body?: unknown,
  ): Promise<unknown> {
    const op = `ask blockd (${method} ${path.split('?')[0]}) about`;
    let status: number;
    let answer: unknown;
    try {
      const response = await request(`http://blockd${path}`, {
        method,
        dispatcher: this.agent,
        signal,
        headers: { 'content-type': 'application/json' },
        body: body === undefined ? null : JSON.stringify(body),
      });
      status = response.statusCode;
      answer = JSON.parse(await limitedText(response.body, op, subject));
    } catch (cause) {
      if (cause instanceof AppError) throw cause;
      const what = signal.aborted ? 'no answer within the deadline' : 'blockd does not answer';
      throw new BlockdAway('Unavailable', { op, subject, what, cause });
    }
    if (status >= 400) throw AppError.fromJSON(answer, { op, subject });
    return answer;
  }
}

/** Nobody answered, as against an answer that is an error. */
class BlockdAway extends AppError {}

async function pauseUnlessAborted(signal: AbortSignal, failure: BlockdAway): Promise<void> {
  try {
    await delay(ASK_AGAIN_MS, undefined, { signal });
  } catch {
    throw failure;
  }
}

async function limitedText(body: AsyncIterable<Uint8Array>, op: string, subject: string): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    bytes += chunk.length;
    if (bytes > MAX_ANSWER_BYTES) throw new AppError('Internal', { op, subject, what: `answer above ${MAX_ANSWER_BYTES} bytes` });
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

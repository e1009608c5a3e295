/** The control plane's door to blockd. Every call fails with Unavailable while blockd is away; the keeper brings it back. */
import { Agent, request } from 'undici';
import { AppError } from '../base/errors.ts';
import type { BlobSource, DeviceSpec } from '../file/device-spec.ts';
import type { DeviceStatus } from './devices.ts';
import type { DataPlaneEvent } from './events.ts';
import type { DataPlaneStats } from './stats.ts';

/** An answer is a list of devices at most: 4096 of them, 1 KiB each. */
const MAX_ANSWER_BYTES = 8 * 1024 * 1024;

export class BlockdClient {
  private readonly agent: Agent;

  constructor(socketPath: string) {
    // Calls wait for the registry as long as their signal lets them; the connection itself is local.
    this.agent = new Agent({ connect: { socketPath, timeout: 2000 }, headersTimeout: 0, bodyTimeout: 0, connections: 64 });
  }

  /** Serves the device and answers the path of its file. Idempotent for equal ids. */
  async attach(spec: DeviceSpec, signal: AbortSignal): Promise<DeviceStatus> {
    return (await this.call('POST', '/devices', spec.image, signal, spec)) as DeviceStatus;
  }

  /** Opens every layer without making a device. */
  async check(spec: DeviceSpec, signal: AbortSignal): Promise<{ deviceSizeBytes: number }> {
    return (await this.call('POST', '/check', spec.image, signal, spec)) as { deviceSizeBytes: number };
  }

  /** Lets the device go when its last user does; an unknown one is no error. */
  async detach(id: string, signal: AbortSignal): Promise<void> {
    await this.call('DELETE', `/devices/${encodeURIComponent(id)}`, id, signal);
  }

  async devices(signal: AbortSignal): Promise<DeviceStatus[]> {
    return (await this.call('GET', '/devices', 'devices', signal)) as DeviceStatus[];
  }

  /** Makes a whole blob local and checks its digest; answers the path of its bytes and how many were fetched. */
  async fetchWhole(source: BlobSource, signal: AbortSignal): Promise<{ path: string; fetchedBytes: number }> {
    return (await this.call('POST', '/fill', source.digest, signal, source)) as { path: string; fetchedBytes: number };
  }

  async stats(signal: AbortSignal): Promise<DataPlaneStats> {
    return (await this.call('GET', '/stats', 'stats', signal)) as DataPlaneStats;
  }

  /** Events after `sequence`, oldest first. */
  async events(sequence: number, signal: AbortSignal): Promise<DataPlaneEvent[]> {
    return (await this.call('GET', `/events?since=${sequence}`, 'events', signal)) as DataPlaneEvent[];
  }

  async close(): Promise<void> {
    await this.agent.destroy();
  }

  private async call(
    method: 'GET' | 'POST' | 'DELETE',
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
      throw new AppError('Unavailable', { op, subject, what, cause });
    }
    if (status >= 400) throw AppError.fromJSON(answer, { op, subject });
    return answer;
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

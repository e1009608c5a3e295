/** A data plane in memory: serves what it is told to, refuses what it is told to refuse, and remembers every call. */
import { AppError } from '../../plugin/base/errors.ts';
import { type DeviceSpec, deviceSpecSchema } from '../../plugin/file/device-spec.ts';
import type { BlockDevices } from '../../plugin/snapshotter/ports.ts';

export class FakeBlockDevices implements BlockDevices {
  readonly attached = new Map<string, DeviceSpec>();
  readonly calls: string[] = [];
  /** Digests of blobs that cannot be opened in the registry; a downloaded copy can. */
  readonly badBlobs = new Set<string>();
  isAway = false;
  /** What stands behind every device; another value means that the keeper lost them all. */
  connection = 'first';
  /** Set to make attach of an id wait for it. */
  readonly gates = new Map<string, Promise<void>>();

  async attach(spec: DeviceSpec, signal: AbortSignal): Promise<{ devicePath: string; connection: string }> {
    this.called('attach', spec.id);
    deviceSpecSchema.parse(spec);
    const gate = this.gates.get(spec.id);
    if (gate !== undefined) {
      await Promise.race([
        gate,
        new Promise((_, reject) => {
          signal.addEventListener('abort', () =>
            reject(new AppError('DeadlineExceeded', { op: 'attach', subject: spec.id, what: 'the registry does not answer' })),
          );
        }),
      ]);
    }
    this.refuseBad(spec);
    this.attached.set(spec.id, spec);
    return { devicePath: `/fake/${spec.id}`, connection: this.connection };
  }

  async check(spec: DeviceSpec): Promise<{ deviceSizeBytes: number }> {
    this.called('check', String(spec.layers.length));
    this.refuseBad(spec);
    return { deviceSizeBytes: 1 << 20 };
  }

  async detach(id: string): Promise<void> {
    this.called('detach', id);
    this.attached.delete(id);
  }

  async list(): Promise<{ id: string }[]> {
    this.called('list', '');
    return [...this.attached.keys()].map((id) => ({ id }));
  }

  /** Blobs that a watcher is to look at, and those that were asked for as a whole. */
  troubled: string[] = [];
  readonly fetchedWhole: string[] = [];

  async troubledBlobs(): Promise<string[]> {
    return this.troubled.splice(0);
  }

  async fetchWhole(blob: { digest: string }): Promise<void> {
    this.fetchedWhole.push(blob.digest);
  }

  private called(op: string, subject: string): void {
    this.calls.push(`${op} ${subject}`.trim());
    if (this.isAway) throw new AppError('Unavailable', { op, subject, what: 'blockd is away' });
  }

  private refuseBad(spec: DeviceSpec): void {
    for (const layer of spec.layers) {
      const { digest, localPath } = layer.kind === 'full' ? layer.blob : layer.meta;
      if (localPath === undefined && this.badBlobs.has(digest))
        throw new AppError('DataLoss', { op: 'open layer', subject: digest, what: 'bad magic' });
    }
  }
}

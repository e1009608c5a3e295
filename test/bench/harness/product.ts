/** The product without containerd, for cases that read devices: the three processes in a scratch directory and the door to blockd. Ours. */
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { BlockdClient } from '../../../plugin/blockd/client.ts';
import type { DeviceStatus } from '../../../plugin/blockd/devices.ts';
import type { DataPlaneStats } from '../../../plugin/blockd/stats.ts';
import type { LayerSpec } from '../../../plugin/file/device-spec.ts';
import { mountDevice, unmountDevice } from '../../../plugin/kernel/mount-device.ts';
import type { Layer } from '../../support/oci-image.ts';
import { Sidecar, type SidecarConfig } from '../../support/sidecar.ts';
import { waitFor } from '../../support/wait.ts';
import { cpuSeconds } from './measure.ts';

const LIMIT_MS = 60_000;

/** Layers that lie as files on this machine. */
export function localLayers(layers: readonly Layer[]): LayerSpec[] {
  return layers.map(({ digest, sizeBytes, blob }) => {
    if (typeof blob !== 'string') throw new Error('a local layer is a file');
    return { kind: 'full', blob: { digest, sizeBytes, repositories: [], localPath: blob } };
  });
}

export class Product implements AsyncDisposable {
  readonly sidecar: Sidecar;
  readonly blockd: BlockdClient;
  private readonly held = new Map<string, number>();
  private readonly stack: AsyncDisposableStack;

  private constructor(sidecar: Sidecar, stack: AsyncDisposableStack) {
    this.sidecar = sidecar;
    this.blockd = new BlockdClient(join(sidecar.run, 'blockd.sock'));
    this.stack = stack;
  }

  static async start(config: SidecarConfig = {}): Promise<Product> {
    await using stack = new AsyncDisposableStack();
    const sidecar = stack.use(await Sidecar.start({ config: { log: { level: 'info' }, ...config } }));
    return new Product(sidecar, stack.move());
  }

  /**
   * Attaches a device and holds it open. Its path goes through the open descriptor: no container uses the device, so the control plane
   * unmounts it when it tidies up, once a minute.
   */
  async attach(id: string, layers: LayerSpec[]): Promise<DeviceStatus> {
    const device = await this.blockd.attach({ version: 1, id, image: `bench/${id}`, layers }, AbortSignal.timeout(LIMIT_MS));
    const fd = openSync(device.devicePath, 'r');
    this.held.set(id, fd);
    return { ...device, devicePath: `/proc/${process.pid}/fd/${fd}` };
  }

  /** Mounts the file system on a device, as the snapshotter does. */
  async mount(device: DeviceStatus, target: string, readAheadKib = 128): Promise<void> {
    await mountDevice({ devicePath: device.devicePath, target, readAheadKib }, AbortSignal.timeout(LIMIT_MS));
  }

  async unmount(target: string): Promise<void> {
    await unmountDevice([target], AbortSignal.timeout(LIMIT_MS));
  }

  /** Lets a device go and waits until the kernel has released it. */
  async detach(id: string): Promise<void> {
    this.letGo(id);
    await this.blockd.detach(id, AbortSignal.timeout(LIMIT_MS));
    await waitFor(async () => !(await this.blockd.devices(AbortSignal.timeout(LIMIT_MS))).some((device) => device.id === id), {
      what: `device ${id} to be released`,
      timeoutMs: LIMIT_MS,
    });
  }

  private letGo(id: string): void {
    const fd = this.held.get(id);
    this.held.delete(id);
    if (fd !== undefined) closeSync(fd);
  }

  stats(): Promise<DataPlaneStats> {
    return this.blockd.stats(AbortSignal.timeout(LIMIT_MS));
  }

  blockdCpuSeconds(): number {
    return cpuSeconds(this.sidecar.pidOf('blockd')!);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const id of [...this.held.keys()]) this.letGo(id);
    await this.blockd.close();
    await this.stack.disposeAsync();
  }
}

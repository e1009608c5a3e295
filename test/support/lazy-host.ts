/** A whole container host in scratch directories: registry, the product, and containerd that asks it for root file systems. Ours. */
import { symlink } from 'node:fs/promises';
import { Containerd, type ContainerdOptions } from './containerd.ts';
import { DockerRegistry, type DockerRegistryOptions } from './docker-registry.ts';
import { pushImage } from './oci-image.ts';
import { Sidecar, type SidecarOptions } from './sidecar.ts';
import { pauseImage } from './small-images.ts';

/** The name that the stanza gives our snapshotter. */
export const SNAPSHOTTER = 'overlaybd';

export interface LazyHostOptions {
  containerd?: Omit<ContainerdOptions, 'proxySnapshotters' | 'criSnapshotter' | 'sandboxImage'>;
  registry?: DockerRegistryOptions;
  sidecar?: SidecarOptions;
}

export class LazyHost implements AsyncDisposable {
  readonly registry: DockerRegistry;
  readonly sidecar: Sidecar;
  readonly containerd: Containerd;
  private readonly stack: AsyncDisposableStack;

  private constructor(registry: DockerRegistry, sidecar: Sidecar, containerd: Containerd, stack: AsyncDisposableStack) {
    this.registry = registry;
    this.sidecar = sidecar;
    this.containerd = containerd;
    this.stack = stack;
  }

  /** Starts all three in the order that a host boots them, with a pause image in the registry, so that CRI pods run. */
  static async start(options: LazyHostOptions = {}): Promise<LazyHost> {
    await using stack = new AsyncDisposableStack();
    const registry = stack.use(await DockerRegistry.start(options.registry));
    const pause = await pushImage(registry, 'test/pause', '1', await pauseImage());
    const sidecar = stack.use(await Sidecar.start(options.sidecar));
    const containerd = stack.use(
      await Containerd.start({
        registries: [{ host: registry.host }],
        ...options.containerd,
        sandboxImage: pause.reference,
        criSnapshotter: SNAPSHOTTER,
        proxySnapshotters: { [SNAPSHOTTER]: { socket: sidecar.snapshotterSocket, root: sidecar.root } },
      }),
    );
    await symlink(containerd.socket, sidecar.containerdSocket);
    return new LazyHost(registry, sidecar, containerd, stack.move());
  }

  /** Containers and containerd first, then the product, then the registry. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stack.disposeAsync();
  }
}

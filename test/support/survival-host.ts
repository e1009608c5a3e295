/**
 * A registry behind a slow link and the product, without containerd: images are pulled and containers' roots mounted through the
 * snapshotter's own socket, as containerd would do it. Ours.
 */
import { createHash } from 'node:crypto';
import { readFile, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { describeError } from '../../plugin/base/errors.ts';
import { MissingList } from '../../plugin/file/file.ts';
import { chainIdOf } from '../../plugin/snapshotter/chain-id.ts';
import { memoryDevice, openMemoryDevice } from './devices.ts';
import { DockerRegistry } from './docker-registry.ts';
import { type Image, type PushedImage, pushImage } from './oci-image.ts';
import { run } from './process.ts';
import { type RegistryProxy, startRegistryProxy } from './registry-proxy.ts';
import { Scratch } from './scratch.ts';
import { Sidecar, type SidecarOptions } from './sidecar.ts';
import { CODE, codeOf, SnapshotsClient } from './snapshots-client.ts';
import type { SurvivalTree } from './survival-image.ts';
import { READ_MODES, type ReadMode, VerifyingReader } from './verifying-reader.ts';
import { waitFor } from './wait.ts';

/** The root file system of one container, mounted. */
export interface ContainerRoot {
  key: string;
  /** The top of the image's chain. */
  parent: string;
  path: string;
  /** Mount point of the image that the container stands on. */
  lower: string;
}

/** Read directly in one pass. */
const FRONT_BYTES = 12 * 1024 * 1024;

const INTERNAL = 13;

/** kubelet goes on trying; while the control plane is killed every second, a start on a slow link may take many tries. */
const PREPARE_PATIENCE_MS = 600_000;

/** The front of the block device that the layers make (the device itself may be declared far larger than its content). */
async function frontOf(image: Image): Promise<{ size: number; sha256: string }> {
  const blobs = await Promise.all(image.layers.map(({ blob }) => (typeof blob === 'string' ? readFile(blob) : blob)));
  const { file } = openMemoryDevice(memoryDevice(blobs));
  const bytes = Buffer.alloc(Math.min(file.sizeBytes, FRONT_BYTES));
  if (!file.readSync(0, bytes.length, bytes, 0, new MissingList())) throw new Error('bytes are not local');
  return { size: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
}

/** UNAVAILABLE; a connection that ends in the middle of an answer is INTERNAL to this client, where containerd's says UNAVAILABLE. */
function isConnectionLost(error: unknown): boolean {
  return codeOf(error) === CODE.unavailable || (codeOf(error) === INTERNAL && describeError(error).includes('RST_STREAM'));
}

export class SurvivalHost implements AsyncDisposable {
  readonly registry: DockerRegistry;
  readonly proxy: RegistryProxy;
  readonly sidecar: Sidecar;
  readonly scratch: Scratch;
  private readonly stack: AsyncDisposableStack;
  private counter = 0;

  private constructor(
    parts: { registry: DockerRegistry; proxy: RegistryProxy; sidecar: Sidecar; scratch: Scratch },
    stack: AsyncDisposableStack,
  ) {
    this.registry = parts.registry;
    this.proxy = parts.proxy;
    this.sidecar = parts.sidecar;
    this.scratch = parts.scratch;
    this.stack = stack;
  }

  static async start(options: SidecarOptions = {}): Promise<SurvivalHost> {
    await using stack = new AsyncDisposableStack();
    const registry = stack.use(await DockerRegistry.start());
    const proxy = await startRegistryProxy({ upstream: registry.host });
    stack.defer(() => proxy.close());
    const sidecar = stack.use(await Sidecar.start(options));
    const scratch = stack.use(await Scratch.create('survival'));
    return new SurvivalHost({ registry, proxy, sidecar, scratch }, stack.move());
  }

  /** Puts an image into the registry; its reference leads through the slow link. */
  async push(name: string, image: Image): Promise<PushedImage> {
    const pushed = await pushImage(this.registry, `survival/${name}`, 'v1', image);
    return { ...pushed, reference: `${this.proxy.host}/${pushed.repository}:v1` };
  }

  /** Pulls without a byte of a layer; returns the top of the chain. Tries again while the product is being replaced. */
  async pull(image: PushedImage): Promise<string> {
    let parent = '';
    for (const [index, layer] of image.layers.entries()) {
      const ref = chainIdOf(image.layers.slice(0, index + 1).map((below) => below.diffId));
      const labels = {
        ...layer.annotations,
        'containerd.io/snapshot.ref': ref,
        'containerd.io/snapshot/cri.image-ref': image.reference,
        'containerd.io/snapshot/cri.manifest-digest': image.manifest.digest,
        'containerd.io/snapshot/cri.layer-digest': layer.digest,
      };
      const below = parent;
      await this.call(async (client) => {
        try {
          await client.prepare(`extract-${this.counter++} ${ref}`, below, labels);
        } catch (error) {
          if (codeOf(error) === CODE.alreadyExists) return;
          throw error;
        }
        throw new Error(`${image.reference} is not served lazily\n${this.sidecar.logTail()}`);
      });
      parent = ref;
    }
    return parent;
  }

  /** Pulls, prepares a container on the image and mounts its root. */
  async startContainer(image: PushedImage): Promise<ContainerRoot> {
    const parent = await this.pull(image);
    const key = `container-${this.counter++}`;
    const mounts = await this.call(async (client) => {
      try {
        return await client.prepare(key, parent);
      } catch (error) {
        // The answer of an earlier try was lost.
        if (codeOf(error) === CODE.alreadyExists) return client.mounts(key);
        throw error;
      }
    });
    return this.mountRoot(key, parent, mounts);
  }

  /** Unmounts a container's root; its snapshot stays. */
  async unmount(root: ContainerRoot): Promise<void> {
    await run('umount', [root.path], { timeoutMs: 60_000 });
    await rm(root.path, { recursive: true });
  }

  /** Mounts the root of a container that is prepared already, as when it starts again. */
  async mountAgain(key: string): Promise<ContainerRoot> {
    return this.mountRoot(key, '', await this.call((client) => client.mounts(key)));
  }

  /** Unmounts and removes a container, as when it has ended; the image's device closes a little later. */
  async removeContainer(root: ContainerRoot): Promise<void> {
    await this.unmount(root);
    await this.remove(root.key);
  }

  /** Removes a snapshot that may be gone already. */
  async remove(key: string): Promise<void> {
    await this.call(async (client) => {
      try {
        await client.remove(key);
      } catch (error) {
        if (codeOf(error) !== CODE.notFound) throw error;
      }
    });
  }

  /** A reader of a container's root in one mode; gentle enough that eight of them leave two processors some time. */
  reader(root: ContainerRoot, mode: ReadMode, tree: SurvivalTree, seed: number): Promise<VerifyingReader> {
    return VerifyingReader.start({ root: root.path, mode, files: tree.files, exec: tree.exec, seed, pauseMs: mode === 'exec' ? 50 : 3 });
  }

  /**
   * Readers of a container in all four modes. EROFS on a file refuses O_DIRECT (EINVAL), as the kernel has it: there the device's file is
   * read directly instead, against the digest of the image's block device.
   */
  async readers(root: ContainerRoot, tree: SurvivalTree, device: { kind: 'erofs' | 'ext4'; image: Image }): Promise<VerifyingReader[]> {
    const readers: VerifyingReader[] = [];
    for (const [n, mode] of READ_MODES.entries()) {
      if (mode !== 'direct' || device.kind === 'ext4') readers.push(await this.reader(root, mode, tree, n));
      else {
        const path = basename(root.lower);
        const file = await frontOf(device.image);
        readers.push(
          await VerifyingReader.start({ root: join(this.sidecar.run, 'devices'), mode, files: [{ path, ...file }], seed: n, pauseMs: 20 }),
        );
      }
    }
    return readers;
  }

  private async mountRoot(
    key: string,
    parent: string,
    [mount]: readonly { type: string; source: string; options: string[] }[],
  ): Promise<ContainerRoot> {
    const path = await this.scratch.dir(`root-${this.counter++}`);
    await run('mount', ['-t', mount!.type, '-o', mount!.options.join(','), mount!.source, path], { timeoutMs: 60_000 });
    const lower = mount!.options.find((option) => option.startsWith('lowerdir='))!.slice('lowerdir='.length);
    return { key, parent, path, lower };
  }

  /** Calls until the answer is something other than UNAVAILABLE, as containerd's callers do. */
  private call<T>(what: (client: SnapshotsClient) => Promise<T>): Promise<T> {
    let failure: unknown;
    return waitFor<{ value: T } | { error: unknown }>(
      async () => {
        using client = new SnapshotsClient(this.sidecar.snapshotterSocket);
        try {
          return { value: await what(client) };
        } catch (error) {
          failure = error;
          return isConnectionLost(error) ? undefined : { error };
        }
      },
      {
        what: 'the snapshotter to answer',
        timeoutMs: PREPARE_PATIENCE_MS,
        everyMs: 100,
        details: () => `${failure}\n${this.sidecar.logTail()}`,
      },
    ).then((outcome) => {
      if ('error' in outcome) throw outcome.error;
      return outcome.value;
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stack.disposeAsync();
  }
}

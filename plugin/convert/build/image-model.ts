/** What a conversion knows of its image between layers: the tree, the device's addresses and metadata, and the chain of layers. Ours. */
import path from 'node:path';
import { type Digest, sha256 } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { MAX_LAYERS } from '../../base/limits.ts';
import { DeviceSpace } from '../../image/erofs/device-space.ts';
import type { LayerSources } from '../../image/erofs/layer-writer.ts';
import { restoreTree } from '../../image/erofs/restore-tree.ts';
import { FileTree } from '../../image/erofs/tree.ts';
import { MetadataStore } from './metadata-store.ts';
import type { ConvertOptions } from './options.ts';
import { Spool } from './spool.ts';

export class ImageModel implements Disposable {
  readonly tree: FileTree;
  readonly space: DeviceSpace;
  /** Small content of the present layer; `reset` it at the layer's end. */
  readonly files: Spool;
  readonly metadata: MetadataStore;
  private chainId: Digest | undefined;
  private readonly baseCount: number;
  private count = 0;

  /** Creates helper files in the staging directory; `dispose` removes them. */
  constructor(options: Pick<ConvertOptions, 'stagingDirectory' | 'base'>) {
    const { stagingDirectory, base } = options;
    const restored = base === undefined ? undefined : restoreTree(base.read);
    this.tree = restored?.tree ?? new FileTree();
    this.space = restored?.space ?? new DeviceSpace();
    this.baseCount = base?.diffIds.length ?? 0;
    for (const diffId of base?.diffIds ?? []) this.chainId = nextChainId(this.chainId, diffId);
    this.files = new Spool(path.join(stagingDirectory, 'small-files'));
    this.metadata = new MetadataStore(path.join(stagingDirectory, 'metadata'), base?.read);
  }

  /** Begins the next layer; returns its position, from 0. Throws ResourceExhausted when an image may not have so many. */
  beginLayer(name: string): number {
    const index = this.count++;
    if (this.baseCount + this.count > MAX_LAYERS) {
      throw new AppError('ResourceExhausted', { op: 'convert', subject: name, what: `an image may have ${MAX_LAYERS} layers` });
    }
    this.tree.beginLayer(this.count);
    return index;
  }

  /** Enters the layer's diffID into the chain. */
  chain(diffId: Digest): { chainId: Digest; uuid: string; parentUuid: string | undefined } {
    const parent = this.chainId;
    const chainId = nextChainId(parent, diffId);
    this.chainId = chainId;
    return { chainId, uuid: uuidOf(chainId), parentUuid: parent === undefined ? undefined : uuidOf(parent) };
  }

  /** For the layout of a layer of this chain id. */
  sources(chainId: Digest): LayerSources {
    return {
      tree: this.tree,
      space: this.space,
      read: this.metadata.read,
      readSpool: (offset: number, length: number) => this.files.read(offset, length),
      uuid: Buffer.from(sha256(`erofs ${chainId}`).slice(7, 39), 'hex'),
    };
  }

  /** The layer is on the device. */
  endLayer(): void {
    this.tree.endLayer();
    this.files.reset();
  }

  [Symbol.dispose](): void {
    this.metadata[Symbol.dispose]();
    this.files[Symbol.dispose]();
  }
}

function nextChainId(chainId: Digest | undefined, diffId: Digest): Digest {
  return chainId === undefined ? diffId : sha256(`${chainId} ${diffId}`);
}

/** The first 32 hexadecimal digits in UUID form, as the reference derives a layer's UUID from its chain. */
function uuidOf(chainId: Digest): string {
  const hex = chainId.slice(7, 39);
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-');
}

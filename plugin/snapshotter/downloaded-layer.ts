/**
 * Layers of an accelerated image that containerd downloads after all (a registry without ranges, a label that asks for it). Unpacked,
 * such a layer is one file, the block layer itself, which is then served from disk. It is unpacked apart from its parents: the tar
 * holds no file-system changes, and the parents' device may be just what could not be opened.
 */
import fs from 'node:fs/promises';
import path from 'node:path';
import { isDigest } from '../base/digest.ts';
import type { LayerSpec } from '../file/device-spec.ts';
import type { Accelerated } from './accelerated.ts';
import { chainIdOf } from './chain-id.ts';
import type { PullRequest } from './labels.ts';

/** The name that the format's writers give to the block layer in its tar. Source: overlaybd-formats.md 3.1. */
const LAYER_FILE = 'overlaybd.commit';
/** What may lie beside it: our converter's list of chunk digests, which only reads from the registry need. */
const CHUNK_LIST_FILE = 'overlaybd.chunks';

/** What an unpacked layer turned out to be. */
export type DownloadedLayer = { accelerated: Accelerated } | { brokenReason: string };

/** Entries that are looked at; a layer that is served has one or two. */
const MAX_ENTRIES = 8;

async function listSome(directory: string): Promise<string[]> {
  const names: string[] = [];
  for await (const entry of await fs.opendir(directory)) {
    names.push(entry.name);
    if (names.length > MAX_ENTRIES) break;
  }
  return names;
}

function digestsOf(layers: readonly LayerSpec[]) {
  return layers.flatMap((layer) => (layer.kind === 'full' && isDigest(layer.blob.digest) ? [layer.blob.digest] : []));
}

/** Looks at a layer that was unpacked into `directory`. `parent` is what the parent snapshot is served from, if it is. */
export async function inspectDownloadedLayer(
  directory: string,
  pull: PullRequest,
  parent: { accelerated: Accelerated | undefined } | undefined,
): Promise<DownloadedLayer> {
  const { layer } = pull;
  if (layer === undefined) return { brokenReason: 'the layer lost its overlaybd labels between Prepare and Commit' };
  // The trace that it holds is not of the file system: the image is what lies below.
  if (layer.isAccelerationLayer) {
    if (parent?.accelerated === undefined) return { brokenReason: 'an acceleration layer, and the snapshot below it is no block device' };
    return { accelerated: parent.accelerated };
  }
  if (layer.target !== undefined)
    return {
      brokenReason:
        'an index-only (TurboOCI) layer was downloaded; its data is in the original layer, and why that is not read is in the events',
    };
  const names = await listSome(directory);
  const file = path.join(directory, LAYER_FILE);
  const others = names.filter((name) => name !== LAYER_FILE && name !== CHUNK_LIST_FILE);
  if (!names.includes(LAYER_FILE) || others.length > 0) {
    return { brokenReason: `the layer says it is an overlaybd layer and holds ${JSON.stringify(names)}, expected ${LAYER_FILE}` };
  }
  const stat = await fs.lstat(file);
  if (!stat.isFile()) return { brokenReason: `${LAYER_FILE} in the layer is not a file` };
  if (parent !== undefined && parent.accelerated === undefined) {
    return { brokenReason: 'the layer continues a block device, and the snapshot below it is not one' };
  }
  const layers: LayerSpec[] = [
    ...(parent?.accelerated?.layers ?? []),
    { kind: 'full', blob: { digest: layer.blobDigest, sizeBytes: stat.size, repositories: [], localPath: file } },
  ];
  const digests = digestsOf(layers);
  if (digests.length !== layers.length || chainIdOf(digests) !== pull.chainRef) {
    return { brokenReason: `the device below this layer is not the one that chain ${pull.chainRef} names` };
  }
  return { accelerated: { image: pull.image ?? '', artifact: pull.manifestDigest ?? null, base: null, layers } };
}

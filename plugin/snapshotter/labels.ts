/**
 * Snapshot labels that act here, and what a pull says through them. containerd passes on labels that begin with
 * `containerd.io/snapshot/`, and `containerd.io/snapshot.ref`. Source: overlaybd-formats.md 4.1 and 8.3; containerd's
 * docs/remote-snapshotter.md and pkg/snapshotters.
 */

import { type Digest, isDigest, parseDigest } from '../base/digest.ts';
import { AppError } from '../base/errors.ts';
import { MAX_BLOB_BYTES } from '../base/limits.ts';
import { CHUNK_LIST_ANNOTATION, type ChunkList, parseChunkList } from '../image/oci/chunk-list.ts';

const PREFIX = 'containerd.io/snapshot/';

/** This Prepare is a pull; the value is the chain id under which the layer is wanted. */
export const LABEL_CHAIN_REF = 'containerd.io/snapshot.ref';
/** CRI's reference is the one the pod wrote; the other is what other clients pass. */
const LABEL_IMAGE_REFS = [`${PREFIX}cri.image-ref`, `${PREFIX}image-ref`];
const LABEL_MANIFEST_DIGEST = `${PREFIX}cri.manifest-digest`;
const LABEL_BLOB_DIGEST = `${PREFIX}overlaybd/blob-digest`;
const LABEL_BLOB_SIZE = `${PREFIX}overlaybd/blob-size`;
const LABEL_FS_TYPE = `${PREFIX}overlaybd/blob-fs-type`;
const LABEL_ACCELERATION = `${PREFIX}overlaybd/acceleration-layer`;
const LABEL_DOWNLOAD = `${PREFIX}overlaybd/download-remote-blob`;
const TURBO_KEYS = ['turbo-oci', 'fastoci'].map((name) => ({
  digest: `${PREFIX}overlaybd/${name}/target-digest`,
  mediaType: `${PREFIX}overlaybd/${name}/target-media-type`,
}));
const LABEL_LAYER_DIGEST = `${PREFIX}cri.layer-digest`;

/** `yes`: the container's root file system is mounted with overlayfs's `volatile`. Ours; read when a container is prepared. */
export const LABEL_VOLATILE = `${PREFIX}overlaybd/volatile`;
/** Written on snapshots that were made without a download; the value that other remote snapshotters write. */
export const LABEL_REMOTE = `${PREFIX}remote`;
/** Written on what Stat and List return of a snapshot that cannot be used. Never stored. */
export const LABEL_BROKEN = `${PREFIX}overlaybd/broken`;
/** User namespace mappings, `container:host:size`; containerd ≥ 1.7. */
export const LABEL_UID_MAPPING = `${PREFIX}uidmapping`;
export const LABEL_GID_MAPPING = `${PREFIX}gidmapping`;

/** containerd's own limit of a label's key and value together. */
const MAX_LABEL_BYTES = 4096;

/** Name (255), tag (128) and digest (71) with their separators stay below. */
const MAX_REFERENCE_CHARS = 512;

/** The annotations of one layer, as labels or in a manifest, as far as they matter for serving it. */
export interface LayerMarks {
  blobDigest: Digest;
  blobSizeBytes: number;
  /** Where the SHA-256 of the blob's chunks lie; layers of other converters have none. */
  chunkList?: ChunkList;
  /** Index-only (TurboOCI, FastOCI): the blob holds metadata, the data is in this original layer. */
  target?: { digest: Digest; mediaType: string };
  /** The file system that a block layer belongs to; the reference writes it only when it is not ext4. */
  fsType: 'ext4' | 'erofs';
  /** A record of what a program reads; no file system. */
  isAccelerationLayer: boolean;
  /** The client wants the blob downloaded, not read lazily. */
  wantsDownload: boolean;
}

/** What a Prepare for a pull says. */
export interface PullRequest {
  chainRef: string;
  image: string | undefined;
  manifestDigest: Digest | undefined;
  /** The layer's digest in the image's manifest. */
  layerDigest: Digest | undefined;
  /** Absent: an ordinary layer. */
  layer: LayerMarks | undefined;
}

/** Checks labels that came with a call. Throws InvalidArgument naming the label. */
export function checkLabels(labels: Readonly<Record<string, string>>): void {
  for (const [key, value] of Object.entries(labels)) {
    const sizeBytes = Buffer.byteLength(key) + Buffer.byteLength(value);
    if (sizeBytes > MAX_LABEL_BYTES) {
      throw new AppError('InvalidArgument', {
        op: 'check label',
        subject: key.slice(0, 100),
        what: `key and value take ${sizeBytes} bytes, the limit is ${MAX_LABEL_BYTES}`,
      });
    }
  }
}

/** The original layer of an index-only one. Its version label says nothing more: the base layer of such an image carries it too. */
function targetOf(labels: Readonly<Record<string, string>>): Pick<LayerMarks, 'target'> {
  const keys = TURBO_KEYS.find(({ digest }) => labels[digest] !== undefined);
  if (keys === undefined) return {};
  return { target: { digest: parseDigest(labels[keys.digest], `label ${keys.digest}`), mediaType: labels[keys.mediaType] ?? '' } };
}

/**
 * Reads a layer's marks; undefined when it carries none. Throws InvalidArgument when they are there and malformed: such a layer is
 * neither an ordinary layer nor one that can be served.
 */
export function readLayerMarks(labels: Readonly<Record<string, string>>): LayerMarks | undefined {
  const digest = labels[LABEL_BLOB_DIGEST];
  if (digest === undefined) return undefined;
  const blobDigest = parseDigest(digest, `label ${LABEL_BLOB_DIGEST}`);
  const sizeText = labels[LABEL_BLOB_SIZE] ?? '';
  const blobSizeBytes = /^[0-9]{1,16}$/.test(sizeText) ? Number(sizeText) : Number.NaN;
  if (!(blobSizeBytes > 0 && blobSizeBytes <= MAX_BLOB_BYTES)) {
    throw new AppError('InvalidArgument', {
      op: 'read label',
      subject: LABEL_BLOB_SIZE,
      what: `${JSON.stringify(sizeText.slice(0, 40))} is not a size from 1 to ${MAX_BLOB_BYTES} bytes`,
    });
  }
  const chunkList = labels[CHUNK_LIST_ANNOTATION];
  return {
    blobDigest,
    blobSizeBytes,
    ...(chunkList === undefined ? {} : { chunkList: parseChunkList(chunkList, `label ${CHUNK_LIST_ANNOTATION}`) }),
    ...targetOf(labels),
    // May be followed by options: `erofs;ro;…`.
    fsType: labels[LABEL_FS_TYPE]?.split(';', 1)[0] === 'erofs' ? 'erofs' : 'ext4',
    isAccelerationLayer: labels[LABEL_ACCELERATION] === 'yes',
    wantsDownload: labels[LABEL_DOWNLOAD] === 'download',
  };
}

/** The image that a snapshot was pulled for, as far as its labels tell; for people. Nothing is checked. */
export function pulledImageOf(labels: Readonly<Record<string, string>>): { image: string | undefined; manifestDigest: string | undefined } {
  return {
    image: LABEL_IMAGE_REFS.map((key) => labels[key]).find((value) => value !== undefined && value !== ''),
    manifestDigest: labels[LABEL_MANIFEST_DIGEST],
  };
}

/** Reads what a pull says; undefined when this Prepare is not one. Throws InvalidArgument. */
export function readPullRequest(labels: Readonly<Record<string, string>>): PullRequest | undefined {
  const chainRef = labels[LABEL_CHAIN_REF];
  if (chainRef === undefined || chainRef === '') return undefined;
  const manifestDigest = labels[LABEL_MANIFEST_DIGEST];
  const image = LABEL_IMAGE_REFS.map((key) => labels[key]).find((value) => value !== undefined && value !== '');
  if (image !== undefined && image.length > MAX_REFERENCE_CHARS) {
    throw new AppError('InvalidArgument', {
      op: 'read label',
      subject: LABEL_IMAGE_REFS.join(' or '),
      what: `a reference of ${image.length} characters, the limit is ${MAX_REFERENCE_CHARS}`,
    });
  }
  const layer = readLayerMarks(labels);
  const layerDigest = labels[LABEL_LAYER_DIGEST];
  return {
    chainRef,
    image,
    manifestDigest: manifestDigest === undefined ? undefined : parseDigest(manifestDigest, `label ${LABEL_MANIFEST_DIGEST}`),
    // Another algorithm than ours is no reason to refuse an ordinary layer.
    layerDigest: isDigest(layerDigest) ? layerDigest : layer?.blobDigest,
    layer,
  };
}

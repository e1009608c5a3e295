/** A registry in memory: images of overlaybd layers, by reference and by digest. */
import { sha256 } from '../../plugin/base/digest.ts';
import { AppError } from '../../plugin/base/errors.ts';
import type { ImageResolver } from '../../plugin/snapshotter/ports.ts';

const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json';
const PREFIX = 'containerd.io/snapshot/overlaybd/';

export interface FakeLayer {
  digest: string;
  size: number;
  annotations: Record<string, string>;
  mediaType?: string;
  /** Default: the digest, as for layers that are not compressed. */
  diffId?: string;
}

/** What makes a manifest an artifact that refers to another. */
export interface FakeArtifact {
  artifactType: string;
  subject: string;
}

/** A layer as the converter annotates it; its digest is that of `name`. */
export function overlaybdLayer(name: string, extra: Record<string, string> = {}): FakeLayer {
  const digest = sha256(name);
  const size = 1000 + name.length;
  const annotations = { [`${PREFIX}blob-digest`]: digest, [`${PREFIX}blob-size`]: String(size), [`${PREFIX}version`]: '0.1.0', ...extra };
  return { digest, size, annotations };
}

/** An index-only layer over `target`; its blob has to be stored with {@link FakeImageResolver.addBlob}. */
export function indexLayer(blob: { digest: string; size: number }, target: FakeLayer): FakeLayer {
  return {
    ...blob,
    annotations: {
      [`${PREFIX}blob-digest`]: blob.digest,
      [`${PREFIX}blob-size`]: String(blob.size),
      [`${PREFIX}version`]: '0.1.0-turbo.ociv1',
      [`${PREFIX}turbo-oci/target-digest`]: target.digest,
      [`${PREFIX}turbo-oci/target-media-type`]: target.mediaType ?? '',
    },
  };
}

/** A layer without annotations. */
export function ordinaryLayer(name: string): FakeLayer {
  return { digest: sha256(name), size: 1000, annotations: {} };
}

export class FakeImageResolver implements ImageResolver {
  private readonly contents = new Map<string, { manifestBytes: Uint8Array; digest: string; mediaType: string }>();
  readonly calls: string[] = [];
  readonly blobs = new Map<string, Uint8Array>();
  private readonly referrers = new Map<string, { digest: string; artifactType: string }[]>();
  isAway = false;
  /** Awaited by look-ups for twins, if set. */
  slowness: Promise<void> | undefined;

  /** Stores a blob; the answer is what a descriptor says of it. */
  addBlob(bytes: Uint8Array): { digest: string; size: number } {
    const digest = sha256(bytes);
    this.blobs.set(digest, bytes);
    return { digest, size: bytes.length };
  }

  /** Stores an ordinary image, or an artifact, with its configuration; artifacts are listed unless told otherwise. */
  addImage(reference: string, layers: readonly FakeLayer[], artifact?: FakeArtifact, options: { isListed?: boolean } = {}): string {
    const diffIds = layers.map((layer) => layer.diffId ?? layer.digest);
    const config = this.addBlob(
      new TextEncoder().encode(JSON.stringify({ architecture: 'amd64', os: 'linux', rootfs: { type: 'layers', diff_ids: diffIds } })),
    );
    const document = { schemaVersion: 2, config, layers, reference, artifactType: artifact?.artifactType };
    const subject = artifact === undefined ? undefined : { digest: artifact.subject };
    const digest = this.addBytes(reference, JSON.stringify({ ...document, subject }), MANIFEST_TYPE);
    this.contents.set(`${reference.replace(/:[^:/]*$/, '')}@${digest}`, this.contents.get(digest)!);
    if (artifact !== undefined && options.isListed !== false) this.list(artifact.subject, { digest, artifactType: artifact.artifactType });
    return digest;
  }

  /** Enters a manifest into the list of what refers to `subject`. */
  list(subject: string, entry: { digest: string; artifactType: string }): void {
    this.referrers.set(subject, [...(this.referrers.get(subject) ?? []), entry]);
  }

  async listReferrers(repository: { host: string; repository: string }, digest: string) {
    this.calls.push(`referrers ${repository.repository}`);
    await this.slowness;
    if (this.isAway) throw new AppError('Unavailable', { op: 'list referrers', subject: digest, what: 'connection refused' });
    return this.referrers.get(digest) ?? [];
  }

  async fetchBlob(_: unknown, blob: { digest: string; sizeBytes: number }, maxBytes: number): Promise<Uint8Array> {
    this.calls.push(`blob ${blob.digest}`);
    const bytes = this.blobs.get(blob.digest);
    if (bytes === undefined) throw new AppError('NotFound', { op: 'fetch blob', subject: blob.digest, what: 'status 404' });
    if (bytes.length > maxBytes) throw new AppError('InvalidArgument', { op: 'fetch blob', subject: blob.digest, what: 'too large' });
    return bytes;
  }

  async blobSize(_: unknown, digest: string): Promise<number | undefined> {
    this.calls.push(`size ${digest}`);
    return this.blobs.get(digest)?.length;
  }

  /** Stores an image and returns its manifest's digest. */
  add(reference: string, layers: readonly FakeLayer[]): string {
    return this.addBytes(reference, JSON.stringify({ schemaVersion: 2, reference, layers }), MANIFEST_TYPE);
  }

  addBytes(reference: string, text: string, mediaType: string): string {
    const manifestBytes = new TextEncoder().encode(text);
    const digest = sha256(manifestBytes);
    for (const name of [reference, digest]) this.contents.set(name, { manifestBytes, digest, mediaType });
    return digest;
  }

  parseReference(reference: string): { host: string; repository: string; tag?: string } {
    const [host = '', ...rest] = reference.split('/');
    const [repository = '', tag] = rest.join('/').replace(/@.*/, '').split(':');
    return { host, repository, ...(tag === undefined ? {} : { tag }) };
  }

  async resolveManifest(reference: string, digest: string | undefined) {
    this.calls.push(digest ?? reference);
    if (this.isAway) throw new AppError('Unavailable', { op: 'fetch manifest', subject: reference, what: 'connection refused' });
    const found = this.contents.get(digest ?? reference);
    if (found === undefined) throw new AppError('NotFound', { op: 'fetch manifest', subject: reference, what: 'status 404' });
    return found;
  }
}

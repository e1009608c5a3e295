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
}

/** A layer as the converter annotates it; its digest is that of `name`. */
export function overlaybdLayer(name: string, extra: Record<string, string> = {}): FakeLayer {
  const digest = sha256(name);
  const size = 1000 + name.length;
  const annotations = { [`${PREFIX}blob-digest`]: digest, [`${PREFIX}blob-size`]: String(size), [`${PREFIX}version`]: '0.1.0', ...extra };
  return { digest, size, annotations };
}

/** A layer without annotations. */
export function ordinaryLayer(name: string): FakeLayer {
  return { digest: sha256(name), size: 1000, annotations: {} };
}

export class FakeImageResolver implements ImageResolver {
  private readonly contents = new Map<string, { manifestBytes: Uint8Array; digest: string; mediaType: string }>();
  readonly calls: string[] = [];
  isAway = false;

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

  parseReference(reference: string): { host: string; repository: string } {
    const [host = '', ...rest] = reference.split('/');
    return { host, repository: rest.join('/').replace(/:.*/, '') };
  }

  async resolveManifest(reference: string, digest: string | undefined) {
    this.calls.push(digest ?? reference);
    if (this.isAway) throw new AppError('Unavailable', { op: 'fetch manifest', subject: reference, what: 'connection refused' });
    const found = this.contents.get(digest ?? reference);
    if (found === undefined) throw new AppError('NotFound', { op: 'fetch manifest', subject: reference, what: 'status 404' });
    return found;
  }
}

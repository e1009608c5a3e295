/** A repository as a source of images to convert. Every byte is checked against its digest by the registry client. Ours. */
import { AppError } from '../../base/errors.ts';
import type { Descriptor } from '../../image/oci/descriptor.ts';
import { isIndexType, isManifestType } from '../../image/oci/media-types.ts';
import type { RegistryClient } from '../../registry/client.ts';
import type { Repository } from '../../registry/reference.ts';
import { type BlobReader, checkDocumentSize } from '../source/image-source.ts';

export class RegistrySource implements BlobReader {
  private readonly client: RegistryClient;
  private readonly repository: Repository;

  constructor(client: RegistryClient, repository: Repository) {
    this.client = client;
    this.repository = repository;
  }

  async readDocument(descriptor: Descriptor, signal: AbortSignal): Promise<Uint8Array> {
    checkDocumentSize(descriptor);
    const { mediaType, digest, sizeBytes } = descriptor;
    if (!isManifestType(mediaType) && !isIndexType(mediaType)) return this.client.getSmallBlob(this.repository, descriptor, { signal });
    const { bytes } = await this.client.getManifest(this.repository, digest, { signal });
    if (bytes.length === sizeBytes) return bytes;
    const what = `it has ${bytes.length} bytes, its descriptor says ${sizeBytes}`;
    throw new AppError('DataLoss', { op: 'read document', subject: digest, what });
  }

  openBlob(descriptor: Descriptor, signal: AbortSignal): AsyncIterable<Uint8Array> {
    return this.client.streamBlob(this.repository, descriptor, { signal });
  }
}

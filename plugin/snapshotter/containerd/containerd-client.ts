/**
 * The little of containerd's API that the service calls as a client: images, content, leases and the list of namespaces. What is not there
 * is `undefined`, not an error.
 */

import { EmptySchema } from '@bufbuild/protobuf/wkt';
import { sha256 } from '../../base/digest.ts';
import { AppError, isAppError } from '../../base/errors.ts';
import {
  Content,
  InfoRequestSchema,
  InfoResponseSchema,
  ReadContentRequestSchema,
  ReadContentResponseSchema,
  UpdateRequestSchema,
  UpdateResponseSchema,
} from '../gen/containerd/services/content/v1/content_pb.ts';
import { GetImageRequestSchema, GetImageResponseSchema, Images } from '../gen/containerd/services/images/v1/images_pb.ts';
import { CreateRequestSchema, CreateResponseSchema, DeleteRequestSchema, Leases } from '../gen/containerd/services/leases/v1/leases_pb.ts';
import {
  ListNamespacesRequestSchema,
  ListNamespacesResponseSchema,
  Namespaces,
} from '../gen/containerd/services/namespaces/v1/namespace_pb.ts';
import { ContainerdChannel } from './channel.ts';
import { type NewContent, type SharedContent, type Sharing, shareContent, writeContent } from './content-write.ts';

/** Should we die, containerd drops the lease itself: longer than any materialization may take. */
const LEASE_EXPIRY_MS = 24 * 60 * 60_000;

const LABEL_EXPIRE = 'containerd.io/gc.expire';

const METHODS = {
  namespaces: { service: Namespaces, name: 'list', input: ListNamespacesRequestSchema, output: ListNamespacesResponseSchema },
  image: { service: Images, name: 'get', input: GetImageRequestSchema, output: GetImageResponseSchema },
  info: { service: Content, name: 'info', input: InfoRequestSchema, output: InfoResponseSchema },
  update: { service: Content, name: 'update', input: UpdateRequestSchema, output: UpdateResponseSchema },
  read: { service: Content, name: 'read', input: ReadContentRequestSchema, output: ReadContentResponseSchema },
  createLease: { service: Leases, name: 'create', input: CreateRequestSchema, output: CreateResponseSchema },
  deleteLease: { service: Leases, name: 'delete', input: DeleteRequestSchema, output: EmptySchema },
} as const;

/** What an image name points at: a manifest or an index. */
export interface ImageTarget {
  digest: string;
  mediaType: string;
}

export interface ContentInfo {
  sizeBytes: number;
  labels: Readonly<Record<string, string>>;
}

/** What is not there is undefined. */
export async function unlessNotFound<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer;
  } catch (error) {
    if (isAppError(error, 'NotFound')) return undefined;
    throw error;
  }
}

/** Every method: errors are containerd's, as AppError; Unavailable when it does not answer; the signal's reason when that is aborted. */
export class ContainerdClient implements Disposable {
  protected readonly channel: ContainerdChannel;

  /** Connects at the first call. */
  constructor(socketPath: string) {
    this.channel = new ContainerdChannel(socketPath);
  }

  async namespaces(signal: AbortSignal): Promise<string[]> {
    const { namespaces } = await this.channel.call(METHODS.namespaces, {}, {}, { op: 'list', subject: 'namespaces', signal });
    return namespaces.map(({ name }) => name);
  }

  async image(namespace: string, name: string, signal: AbortSignal): Promise<ImageTarget | undefined> {
    const answer = await unlessNotFound(
      this.channel.call(METHODS.image, { name }, { namespace }, { op: 'look up image', subject: name, signal }),
    );
    const target = answer?.image?.target;
    return target === undefined ? undefined : { digest: target.digest, mediaType: target.mediaType };
  }

  async contentInfo(namespace: string, digest: string, signal: AbortSignal): Promise<ContentInfo | undefined> {
    const about = { op: 'look up content', subject: digest, signal };
    const info = (await unlessNotFound(this.channel.call(METHODS.info, { digest }, { namespace }, about)))?.info;
    return info === undefined ? undefined : { sizeBytes: Number(info.size), labels: info.labels };
  }

  /** Adds labels to content that is there. */
  async labelContent(namespace: string, digest: string, labels: Readonly<Record<string, string>>, signal: AbortSignal): Promise<void> {
    const paths = Object.keys(labels).map((label) => `labels.${label}`);
    const request = { info: { digest, labels: { ...labels } }, updateMask: { paths } };
    await this.channel.call(METHODS.update, request, { namespace }, { op: 'label content', subject: digest, signal });
  }

  /** Reads small content whole and checks its digest. Errors: NotFound, ResourceExhausted (larger than `maxBytes`), DataLoss. */
  async readContent(namespace: string, digest: string, maxBytes: number, signal: AbortSignal): Promise<Uint8Array> {
    const about = { op: 'read content', subject: digest, signal };
    const chunks: Uint8Array[] = [];
    let sizeBytes = 0;
    for await (const { data } of this.channel.read(METHODS.read, { digest }, { namespace }, about)) {
      sizeBytes += data.length;
      if (sizeBytes > maxBytes) throw new AppError('ResourceExhausted', { ...about, what: `more than ${maxBytes} bytes` });
      chunks.push(data);
    }
    const bytes = Buffer.concat(chunks);
    if (sha256(bytes) !== digest) throw new AppError('DataLoss', { ...about, what: `its bytes have digest ${sha256(bytes)}` });
    return bytes;
  }

  /** Writes a file, or bytes, as content under a lease; see {@link writeContent}. */
  writeContent(namespace: string, lease: string, content: NewContent, signal: AbortSignal): Promise<void> {
    return writeContent(this.channel, { namespace, lease }, content, signal);
  }

  /** Brings content together with whoever else brings it; see {@link shareContent}. */
  shareContent(namespace: string, lease: string, content: SharedContent, signal: AbortSignal): Promise<Sharing> {
    return shareContent(this.channel, { namespace, lease }, content, signal);
  }

  /** Takes a lease; disposing gives it back. Until then nothing that is made under it is collected. */
  async lease(namespace: string, signal: AbortSignal): Promise<AsyncDisposable & { readonly id: string }> {
    const labels = { [LABEL_EXPIRE]: new Date(Date.now() + LEASE_EXPIRY_MS).toISOString() };
    const id = `overlaybd-sidecar-${crypto.randomUUID()}`;
    await this.channel.call(METHODS.createLease, { id, labels }, { namespace }, { op: 'create lease in', subject: namespace, signal });
    // Given back also when the work was aborted, so with a deadline of its own.
    const release = () =>
      this.channel.call(
        METHODS.deleteLease,
        { id },
        { namespace },
        { op: 'delete lease', subject: id, signal: AbortSignal.timeout(30_000) },
      );
    return {
      id,
      [Symbol.asyncDispose]: async () => {
        await unlessNotFound(release());
      },
    };
  }

  [Symbol.dispose](): void {
    this.channel[Symbol.dispose]();
  }
}

/** The distribution API over memory: blobs, manifests, tags, referrers, uploads. Source: OCI distribution-spec v1.1. */
import { randomUUID } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { type Digest, isDigest, sha256 } from '../../plugin/base/digest.ts';
import type { Answer } from './registry-faults.ts';

interface StoredManifest {
  readonly bytes: Buffer;
  readonly mediaType: string;
}

type BlobAnswer = { answer: Answer; whole?: Buffer | undefined };

function reply(status: number, headers: Record<string, string> = {}, body: Buffer | string = ''): { answer: Answer } {
  const bytes = typeof body === 'string' ? Buffer.from(body) : body;
  return { answer: { status, headers: { 'content-length': String(bytes.length), ...headers }, body: bytes } };
}

function failure(status: number, code: string): { answer: Answer } {
  return reply(status, { 'content-type': 'application/json' }, JSON.stringify({ errors: [{ code, message: code }] }));
}

async function readAll(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

export class RegistryApi {
  readonly blobs = new Map<Digest, Buffer>();
  /** `repository@digest`. */
  readonly manifests = new Map<string, StoredManifest>();
  /** `repository:tag`. */
  readonly tags = new Map<string, Digest>();
  readonly uploads = new Map<string, Buffer>();
  private readonly hasReferrersApi: boolean;
  private readonly pageSize: number;

  constructor(options: { hasReferrersApi: boolean; pageSize: number | undefined }) {
    this.hasReferrersApi = options.hasReferrersApi;
    this.pageSize = options.pageSize ?? Number.MAX_SAFE_INTEGER;
  }

  storeManifest(repository: string, tag: string | undefined, bytes: Buffer, mediaType: string): Digest {
    const digest = sha256(bytes);
    this.manifests.set(`${repository}@${digest}`, { bytes, mediaType });
    if (tag !== undefined) this.tags.set(`${repository}:${tag}`, digest);
    return digest;
  }

  async answer(request: IncomingMessage, url: URL): Promise<BlobAnswer> {
    const match = /^\/(?:.*?\/)?v2\/(?:(.+?)\/(blobs|manifests|tags|referrers)\/(.*))?$/.exec(url.pathname);
    if (match === null) return reply(404);
    const [, repository = '', kind, rest = ''] = match;
    if (kind === undefined) return reply(200);
    if (kind === 'manifests') return this.answerManifest(request, repository, rest);
    if (kind === 'tags') return this.answerTags(url, repository);
    if (kind === 'referrers') return this.answerReferrers(url, repository, rest);
    if (rest.startsWith('uploads/')) return this.answerUpload(request, url, repository, rest.slice('uploads/'.length));
    if (request.method === 'DELETE') return this.blobs.delete(rest as Digest) ? reply(202) : failure(404, 'BLOB_UNKNOWN');
    return this.answerBlob(request, rest as Digest);
  }

  async answerBlob(request: IncomingMessage, digest: Digest): Promise<BlobAnswer> {
    const whole = this.blobs.get(digest);
    if (whole === undefined) return failure(404, 'BLOB_UNKNOWN');
    const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
    const headers = { 'content-type': 'application/octet-stream', 'docker-content-digest': digest, 'accept-ranges': 'bytes' };
    if (range === null) return { ...reply(200, headers, whole), whole };
    const start = Number(range[1]);
    const end = range[2] === '' ? whole.length - 1 : Math.min(Number(range[2]), whole.length - 1);
    if (start > end) return { ...failure(416, 'RANGE_INVALID'), whole };
    const contentRange = `bytes ${start}-${end}/${whole.length}`;
    // A view, so that thousands of ranges a second copy nothing here.
    const body = whole.subarray(start, end + 1);
    return {
      answer: { status: 206, headers: { ...headers, 'content-range': contentRange, 'content-length': String(body.length) }, body },
      whole,
    };
  }

  private async answerManifest(request: IncomingMessage, repository: string, object: string): Promise<BlobAnswer> {
    if (request.method === 'PUT') {
      const bytes = await readAll(request);
      const digest = this.storeManifest(repository, isDigest(object) ? undefined : object, bytes, request.headers['content-type'] ?? '');
      const { subject } = JSON.parse(bytes.toString()) as { subject?: { digest: string } };
      const extra: Record<string, string> = this.hasReferrersApi && subject !== undefined ? { 'oci-subject': subject.digest } : {};
      return reply(201, { 'docker-content-digest': digest, location: `/v2/${repository}/manifests/${digest}`, ...extra });
    }
    const digest = isDigest(object) ? object : this.tags.get(`${repository}:${object}`);
    const key = `${repository}@${digest}`;
    const found = digest === undefined ? undefined : this.manifests.get(key);
    if (found === undefined || digest === undefined) return failure(404, 'MANIFEST_UNKNOWN');
    if (request.method === 'DELETE') {
      if (isDigest(object)) this.manifests.delete(key);
      else this.tags.delete(`${repository}:${object}`);
      return reply(202);
    }
    return reply(200, { 'content-type': found.mediaType, 'docker-content-digest': digest }, found.bytes);
  }

  private answerTags(url: URL, repository: string): BlobAnswer {
    const all = [...this.tags.keys()].filter((key) => key.startsWith(`${repository}:`)).map((key) => key.slice(repository.length + 1));
    const last = url.searchParams.get('last');
    const rest = all.sort().filter((tag) => last === null || tag > last);
    const tags = rest.slice(0, this.pageSize);
    const more = rest.length > tags.length;
    const link: Record<string, string> = more ? { link: `</v2/${repository}/tags/list?last=${tags.at(-1)}>; rel="next"` } : {};
    return reply(200, { 'content-type': 'application/json', ...link }, JSON.stringify({ name: repository, tags }));
  }

  private answerReferrers(url: URL, repository: string, digest: string): BlobAnswer {
    if (!this.hasReferrersApi) return reply(404, {}, 'page not found');
    const all = [...this.manifests].flatMap(([key, { bytes, mediaType }]) => {
      if (!key.startsWith(`${repository}@`)) return [];
      const document = JSON.parse(bytes.toString()) as {
        subject?: { digest: string };
        artifactType?: string;
        config?: { mediaType: string };
      };
      if (document.subject?.digest !== digest) return [];
      return [{ mediaType, digest: sha256(bytes), size: bytes.length, artifactType: document.artifactType ?? document.config?.mediaType }];
    });
    const skip = Number(url.searchParams.get('skip') ?? 0);
    const manifests = all.slice(skip, skip + this.pageSize);
    const next = skip + manifests.length;
    const link: Record<string, string> =
      next < all.length ? { link: `</v2/${repository}/referrers/${digest}?skip=${next}>; rel="next"` } : {};
    const body = JSON.stringify({ schemaVersion: 2, mediaType: 'application/vnd.oci.image.index.v1+json', manifests });
    return reply(200, { 'content-type': 'application/vnd.oci.image.index.v1+json', ...link }, body);
  }

  private async answerUpload(request: IncomingMessage, url: URL, repository: string, id: string): Promise<BlobAnswer> {
    const where = (uploadId: string) => ({ location: `/v2/${repository}/blobs/uploads/${uploadId}?state=x` });
    const rangeOf = (bytes: Buffer) => ({ range: `0-${Math.max(bytes.length - 1, 0)}` });
    if (id === '' && request.method === 'POST') {
      await readAll(request);
      const mounted = url.searchParams.get('mount') as Digest | null;
      if (mounted !== null && this.blobs.has(mounted)) return reply(201, { location: `/v2/${repository}/blobs/${mounted}` });
      const fresh = randomUUID();
      this.uploads.set(fresh, Buffer.alloc(0));
      return reply(202, { ...where(fresh), range: '0-0' });
    }
    const held = this.uploads.get(id);
    if (held === undefined) {
      request.resume();
      return failure(404, 'BLOB_UPLOAD_UNKNOWN');
    }
    if (request.method === 'GET') return reply(204, { ...where(id), ...rangeOf(held) });
    if (request.method === 'DELETE') return this.uploads.delete(id) ? reply(204) : reply(404);
    const start = /^(\d+)-\d+$/.exec(request.headers['content-range'] ?? '');
    if (start !== null && Number(start[1]) !== held.length) {
      request.resume();
      return reply(416, { ...where(id), ...rangeOf(held) });
    }
    const all = Buffer.concat([held, await readAll(request)]);
    if (request.method === 'PATCH') {
      this.uploads.set(id, all);
      return reply(202, { ...where(id), ...rangeOf(all) });
    }
    this.uploads.delete(id);
    const digest = url.searchParams.get('digest') as Digest;
    if (sha256(all) !== digest) return failure(400, 'DIGEST_INVALID');
    this.blobs.set(digest, all);
    return reply(201, { location: `/v2/${repository}/blobs/${digest}`, 'docker-content-digest': digest });
  }

  /** Takes the first bytes of an upload's body and keeps them, as a registry does when the connection breaks. */
  async takePart(request: IncomingMessage, count: number): Promise<void> {
    const id = /\/uploads\/([0-9a-f-]+)/.exec(request.url ?? '')?.[1] ?? '';
    const chunks: Buffer[] = [];
    let size = 0;
    for await (const chunk of request as AsyncIterable<Buffer>) {
      chunks.push(chunk);
      size += chunk.length;
      if (size >= count) break;
    }
    const taken = Buffer.concat(chunks);
    const held = this.uploads.get(id);
    if (held !== undefined) this.uploads.set(id, Buffer.concat([held, taken.subarray(0, count)]));
  }
}

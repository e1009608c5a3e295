/** Content that several bring at the same time comes once, whatever an earlier writer left, and whoever fails. */
import { rmSync, writeFileSync } from 'node:fs';
import { create } from '@bufbuild/protobuf';
import { Server, ServerCredentials, type ServerDuplexStream } from '@grpc/grpc-js';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { AppError } from '../../../../plugin/base/errors.ts';
import { ContainerdChannel } from '../../../../plugin/snapshotter/containerd/channel.ts';
import { pullRefOf, type SharedContent, shareContent } from '../../../../plugin/snapshotter/containerd/content-write.ts';
import {
  Content,
  WriteAction,
  type WriteContentRequest,
  WriteContentResponseSchema,
} from '../../../../plugin/snapshotter/gen/containerd/services/content/v1/content_pb.ts';
import { serviceDefinitionOf } from '../../../../plugin/snapshotter/grpc-adapter.ts';
import { Scratch } from '../../../support/scratch.ts';
import { waitFor } from '../../../support/wait.ts';

const BYTES = Buffer.from('a layer of an image');
const DIGEST = sha256(BYTES);
const REF = `layer-${DIGEST}`;
const SIGNAL = new AbortController().signal;
const ALREADY_EXISTS = 6;
const FAILED_PRECONDITION = 9;
const UNAVAILABLE = 14;

/** containerd's content store as far as writes go: one writer of a name at a time, and what he leaves stays. */
class ContentStore {
  readonly content = new Map<string, Buffer>();
  readonly ingests = new Map<string, Buffer>();
  readonly locked = new Set<string>();
  /** Leases of those who were told to wait. */
  readonly refused = new Set<string>();

  readonly write = (stream: ServerDuplexStream<WriteContentRequest, unknown>): void => {
    let ref: string | undefined;
    const unlock = (): void => {
      if (ref !== undefined) this.locked.delete(ref);
      ref = undefined;
    };
    const fail = (code: number, details: string): void => {
      unlock();
      stream.emit('error', { code, details });
    };
    stream.on('data', (message: WriteContentRequest) => {
      if (ref === undefined) {
        if (this.content.has(message.expected)) return fail(ALREADY_EXISTS, `content ${message.expected}: already exists`);
        if (this.locked.has(message.ref)) {
          this.refused.add(String(stream.metadata.get('containerd-lease')[0]));
          return fail(UNAVAILABLE, `ref ${message.ref} locked for 1s (since now): unavailable`);
        }
        ref = message.ref;
        this.locked.add(ref);
      }
      const before =
        message.action === WriteAction.WRITE && message.offset === 0n ? Buffer.alloc(0) : (this.ingests.get(ref) ?? Buffer.alloc(0));
      const bytes = Buffer.concat([before, message.data]);
      this.ingests.set(ref, bytes);
      if (message.action === WriteAction.COMMIT) {
        if (sha256(bytes) !== message.expected) return fail(FAILED_PRECONDITION, 'unexpected digest: failed precondition');
        this.content.set(message.expected, bytes);
        this.ingests.delete(ref);
      }
      stream.write(create(WriteContentResponseSchema, { action: message.action, offset: BigInt(bytes.length) }));
    });
    stream.on('end', () => {
      unlock();
      stream.end();
    });
    stream.on('cancelled', unlock);
  };
}

let scratch: Scratch;
let store: ContentStore;
let server: Server;
let channel: ContainerdChannel;
let file: string;

beforeEach(async () => {
  scratch = await Scratch.create('content-write');
  store = new ContentStore();
  server = new Server();
  server.addService(serviceDefinitionOf(Content), { write: store.write });
  const socket = scratch.join('c.sock');
  await new Promise<void>((resolve, reject) =>
    server.bindAsync(`unix:${socket}`, ServerCredentials.createInsecure(), (error) => (error === null ? resolve() : reject(error))),
  );
  channel = new ContainerdChannel(socket);
  file = scratch.join('layer');
  writeFileSync(file, BYTES);
});
afterEach(async () => {
  channel[Symbol.dispose]();
  server.forceShutdown();
  await scratch[Symbol.asyncDispose]();
});

function share(bring: SharedContent['bring'], signal = SIGNAL, lease = 'l') {
  const content = { digest: DIGEST, sizeBytes: BYTES.length, labels: {}, ref: REF, bring };
  return shareContent(channel, { namespace: 'k8s.io', lease }, content, signal);
}

const never = (): never => {
  throw new Error('brought although it was there');
};

test('of several who bring it one does, and the others wait for him', async () => {
  let brought = 0;
  const letGo = Promise.withResolvers<void>();
  const bring = async (): Promise<string> => {
    brought += 1;
    await letGo.promise;
    return file;
  };
  const all = ['a', 'b', 'c'].map((lease) => share(bring, SIGNAL, lease));
  await waitFor(() => store.refused.size === 2, { what: 'the others to be refused' });
  letGo.resolve();
  expect((await Promise.all(all)).sort()).toEqual(['awaited', 'awaited', 'brought']);
  expect(brought).toBe(1);
  expect(store.content.get(DIGEST)?.equals(BYTES)).toBe(true);
  expect(await share(never)).toBe('there');
});

test('what somebody left whole is taken when it is right', async () => {
  store.ingests.set(REF, BYTES);
  expect(await share(never)).toBe('there');
  expect(store.content.get(DIGEST)?.equals(BYTES)).toBe(true);
});

test.each([
  ['whole but wrong', Buffer.alloc(BYTES.length)],
  ['in part', BYTES.subarray(0, 5)],
  ['in part and wrong', Buffer.alloc(5)],
])('what somebody left %s is written anew', async (_, left) => {
  store.ingests.set(REF, left);
  expect(await share(async () => file)).toBe('brought');
  expect(store.content.get(DIGEST)?.equals(BYTES)).toBe(true);
});

test('who cannot bring it says so and lets the next one try; bytes that are wrong are no endless work', async () => {
  const failure = new AppError('FailedPrecondition', { op: 'fetch', subject: 'layer', what: 'not here' });
  await expect(share(() => Promise.reject(failure))).rejects.toBe(failure);
  await waitFor(() => store.locked.size === 0, { what: 'the write to be let go' });
  writeFileSync(file, Buffer.alloc(BYTES.length));
  await expect(share(async () => file)).rejects.toMatchObject({ code: 'FailedPrecondition' });
  await waitFor(() => store.locked.size === 0, { what: 'the write to be let go' });
  writeFileSync(file, BYTES);
  expect(await share(async () => file)).toBe('brought');
});

test('who has the name and no bytes lets the next one bring them', async () => {
  let asked = 0;
  const stuck = share(async () => {
    asked += 1;
    return undefined;
  });
  await waitFor(() => asked > 0, { what: 'the first to be asked' });
  expect(await share(async () => file)).toBe('brought');
  expect(await stuck).toBe('awaited');
});

test('who waits can give up, and a containerd that is away is an error', async () => {
  store.locked.add(REF);
  const stop = new AbortController();
  const waiting = share(never, stop.signal);
  await waitFor(() => store.refused.size > 0, { what: 'the first refusal' });
  stop.abort(new Error('enough'));
  await expect(waiting).rejects.toThrow();
  server.forceShutdown();
  rmSync(scratch.join('c.sock'), { force: true });
  await expect(share(never)).rejects.toMatchObject({ code: 'Unavailable' });
});

test('layers have the names that pulls of containerd give them', () => {
  const named = (mediaType: string): string => pullRefOf({ digest: DIGEST, mediaType });
  for (const type of [
    'application/vnd.oci.image.layer.v1.tar+gzip',
    'application/vnd.oci.image.layer.nondistributable.v1.tar',
    'application/vnd.docker.image.rootfs.diff.tar.gzip',
    'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip',
  ]) {
    expect(named(type), type).toBe(REF);
  }
  expect(named('application/octet-stream')).toBe(`unknown-${DIGEST}`);
});

/** What caches have in containerd, when calls fail in the middle and others change things between a look and its effect. */
import { create } from '@bufbuild/protobuf';
import { EmptySchema } from '@bufbuild/protobuf/wkt';
import {
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type StatusObject,
  type sendUnaryData,
} from '@grpc/grpc-js';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { AppError } from '../../../../../plugin/base/errors.ts';
import { silentLogger } from '../../../../../plugin/base/log.ts';
import { ContainerdImageStore } from '../../../../../plugin/cache/create/image-store.ts';
import { OwnedCaches, type OwnedImage } from '../../../../../plugin/cache/create/owned.ts';
import type { BlobKeeper, ServedImages } from '../../../../../plugin/cache/create/ports.ts';
import { resourcesOf } from '../../../../../plugin/cache/create/record-keeper.ts';
import { CgroupParent } from '../../../../../plugin/kernel/cgroup.ts';
import { Containers } from '../../../../../plugin/snapshotter/gen/containerd/services/containers/v1/containers_pb.ts';
import {
  CreateImageResponseSchema,
  type Image,
  ImageSchema,
  Images,
  ListImagesResponseSchema,
  UpdateImageResponseSchema,
} from '../../../../../plugin/snapshotter/gen/containerd/services/images/v1/images_pb.ts';
import {
  CreateResponseSchema,
  LeaseSchema,
  Leases,
  ListResourcesResponseSchema,
  ListResponseSchema,
  type Resource,
} from '../../../../../plugin/snapshotter/gen/containerd/services/leases/v1/leases_pb.ts';
import { Version, VersionResponseSchema } from '../../../../../plugin/snapshotter/gen/containerd/services/version/v1/version_pb.ts';
import { serviceDefinitionOf } from '../../../../../plugin/snapshotter/grpc-adapter.ts';
import { Scratch } from '../../../../support/scratch.ts';

const SIGNAL = new AbortController().signal;
const NOT_FOUND = 5;
const ALREADY_EXISTS = 6;

/** containerd as far as leases and image records go. */
class FakeContainerd {
  /** Resources by lease, as `type id`. */
  readonly leases = new Map<string, Set<string>>();
  readonly images = new Map<string, Image>();
  /** Called when a list of images has been made, before its answer. */
  onListed: () => void = () => {};
  private readonly server = new Server();

  async start(socketPath: string): Promise<void> {
    const unary =
      <Request, Response>(handle: (request: Request) => Response) =>
      (call: ServerUnaryCall<Request, Response>, callback: sendUnaryData<Response>): void => {
        try {
          callback(null, handle(call.request));
        } catch (error) {
          callback(error as Partial<StatusObject>);
        }
      };
    const empty = create(EmptySchema);
    const leaseOf = (id: string): Set<string> => this.leases.get(id) ?? refuse(NOT_FOUND, `lease ${id}: not found`);
    const textOf = (resource: Resource | undefined): string => `${resource?.type} ${resource?.id}`;
    this.server.addService(serviceDefinitionOf(Leases), {
      create: unary(({ id }: { id: string }) => {
        if (this.leases.has(id)) refuse(ALREADY_EXISTS, `lease ${id}: already exists`);
        this.leases.set(id, new Set());
        return create(CreateResponseSchema, { lease: { id } });
      }),
      delete: unary(({ id }: { id: string }) => {
        leaseOf(id);
        this.leases.delete(id);
        return empty;
      }),
      list: unary(() => create(ListResponseSchema, { leases: [...this.leases.keys()].map((id) => create(LeaseSchema, { id })) })),
      addResource: unary(({ id, resource }: { id: string; resource?: Resource }) => {
        leaseOf(id).add(textOf(resource));
        return empty;
      }),
      deleteResource: unary(({ id, resource }: { id: string; resource?: Resource }) => {
        if (!leaseOf(id).delete(textOf(resource))) refuse(NOT_FOUND, 'resource: not found');
        return empty;
      }),
      listResources: unary(({ id }: { id: string }) =>
        create(ListResourcesResponseSchema, {
          resources: [...leaseOf(id)].map((text) => ({ type: text.split(' ')[0]!, id: text.split(' ')[1]! })),
        }),
      ),
    });
    this.server.addService(serviceDefinitionOf(Images), {
      list: unary(() => {
        const answer = create(ListImagesResponseSchema, { images: [...this.images.values()] });
        this.onListed();
        return answer;
      }),
      create: unary(({ image }: { image?: Image }) => {
        if (this.images.has(image!.name)) refuse(ALREADY_EXISTS, `image ${image!.name}: already exists`);
        this.images.set(image!.name, image!);
        return create(CreateImageResponseSchema, { image: image! });
      }),
      update: unary(({ image }: { image?: Image }) => {
        this.images.set(image!.name, image!);
        return create(UpdateImageResponseSchema, { image: image! });
      }),
      delete: unary(({ name }: { name: string }) => {
        if (!this.images.delete(name)) refuse(NOT_FOUND, `image ${name}: not found`);
        return empty;
      }),
    });
    this.server.addService(serviceDefinitionOf(Containers), {
      listStream: (stream: ServerWritableStream<unknown, unknown>): void => {
        stream.end();
      },
    });
    this.server.addService(serviceDefinitionOf(Version), { version: unary(() => create(VersionResponseSchema, { version: 'v1.7.24' })) });
    await new Promise<void>((resolve, reject) => {
      this.server.bindAsync(`unix:${socketPath}`, ServerCredentials.createInsecure(), (error) =>
        error === null ? resolve() : reject(error),
      );
    });
  }

  stop(): void {
    this.server.forceShutdown();
  }
}

function refuse(code: number, details: string): never {
  throw { code, details };
}

const digest = (n: number) => `sha256:${String(n).padStart(64, '0')}` as const;

function image(n: number): OwnedImage {
  const reference = `registry.example/app-${n}:1`;
  return {
    reference,
    names: [reference, `registry.example/app-${n}@${digest(n)}`, digest(n + 100)],
    target: { digest: digest(n), mediaType: 'application/vnd.oci.image.manifest.v1+json', sizeBytes: 500 },
    platformDigest: digest(n),
    configDigest: digest(n + 100),
    chainId: digest(n + 200),
    blobs: [],
  };
}

let scratch: Scratch;
let containerd: FakeContainerd;
let owned: OwnedCaches;
let store: ContainerdImageStore;
/** What the data plane says when it is asked who pins blobs. */
let failures: Error[];

const leaseIds = (): string[] => [...containerd.leases.keys()];
const heldBy = (...images: OwnedImage[]): string[] =>
  images.flatMap((one) => resourcesOf(one, 'overlaybd').map(({ type, id }) => `${type} ${id}`)).sort();

beforeEach(async () => {
  scratch = await Scratch.create('release');
  containerd = new FakeContainerd();
  await containerd.start(scratch.join('containerd.sock'));
  owned = await OwnedCaches.open(scratch.join('image-caches'), silentLogger);
  failures = [];
  const pinOwners = async (): Promise<string[]> => {
    const failure = failures.shift();
    if (failure !== undefined) throw failure;
    return [];
  };
  store = new ContainerdImageStore(
    {
      rootDir: scratch.path,
      containerdAddress: scratch.join('containerd.sock'),
      namespace: 'k8s.io',
      snapshotter: 'overlaybd',
      limits: { cpus: 1, memoryBytes: 1 << 30 },
      creationDeadlineMs: 60_000,
      logLevel: 'silent',
    } as ConstructorParameters<typeof ContainerdImageStore>[0],
    {
      blobs: { pinOwners } as unknown as BlobKeeper,
      images: {} as ServedImages,
      resolverOf: () => {
        throw new TypeError('nothing is resolved here');
      },
      logger: silentLogger,
      owned,
      cgroups: new CgroupParent('none', new Map()),
    },
  );
});
afterEach(async () => {
  await store.stop();
  containerd.stop();
  await scratch[Symbol.asyncDispose]();
});

/** A cache with images as their making leaves them; answers the name of its lease. */
async function cacheOf(...images: OwnedImage[]): Promise<string> {
  await owned.change('imc-a', () => ({ cacheId: 'imc-a', making: false, ready: images, leaving: [] }));
  // A look gives back the lease and the records.
  await store.release('imc-a', images as never, SIGNAL);
  const [lease] = leaseIds();
  return lease!;
}

test('the lease lets go of an image that its cache had, also when the first try fails half-way', async () => {
  const [before, after] = [image(1), image(2)];
  const lease = await cacheOf(before, after);
  expect([...containerd.leases.get(lease)!].sort()).toEqual(heldBy(before, after));
  failures.push(new AppError('Unavailable', { op: 'list', subject: 'pins', what: 'blockd is away' }));
  await expect(store.release('imc-a', [after] as never, SIGNAL)).rejects.toMatchObject({ code: 'Unavailable' });
  await store.release('imc-a', [after] as never, SIGNAL);
  expect([...containerd.leases.get(lease)!].sort()).toEqual(heldBy(after));
  expect([...containerd.images.keys()].sort()).toEqual([...after.names].sort());
});

test('the lease lets go of what an attempt left that did not succeed', async () => {
  const kept = image(1);
  const lease = await cacheOf(kept);
  for (const resource of heldBy(image(3))) containerd.leases.get(lease)!.add(resource);
  await store.release('imc-a', [kept] as never, SIGNAL);
  expect([...containerd.leases.get(lease)!].sort()).toEqual(heldBy(kept));
});

test('a name that somebody moves just when it is to be given back stays where he moved it', async () => {
  const [held, pulled] = [image(1), image(2)];
  await cacheOf(held);
  const name = held.names[0]!;
  containerd.images.delete(name);
  containerd.onListed = () => {
    const { digest, mediaType } = pulled.target;
    containerd.images.set(name, create(ImageSchema, { name, target: { digest, mediaType, size: 500n } }));
  };
  await store.release('imc-a', [held] as never, SIGNAL);
  expect(containerd.images.get(name)?.target?.digest).toBe(pulled.target.digest);
});

test('a making that could not even be written down does not count as under way for ever', async () => {
  const change = owned.change.bind(owned);
  owned.change = () => Promise.reject(new AppError('ResourceExhausted', { op: 'write', subject: 'imc-a', what: 'the disk is full' }));
  const resolved = { reference: image(1).reference, sizeBytes: 1 };
  await expect(store.prepare('imc-a', resolved as never, { reservationBytes: 1, signal: SIGNAL } as never)).rejects.toMatchObject({
    code: 'ResourceExhausted',
  });
  owned.change = change;
  // As an attempt after it leaves it that fails.
  await owned.change('imc-a', (cache) => ({ ...cache, making: true }));
  await store.release('imc-a', [], SIGNAL);
  expect(owned.all()).toEqual([]);
});

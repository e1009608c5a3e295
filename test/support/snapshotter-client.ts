/** A client of the Snapshots service over its socket, for tests that talk to the real process. Failures carry gRPC's numeric code. Ours. */

import { create, type DescMessage, type MessageInitShape, type MessageShape } from '@bufbuild/protobuf';
import { Client, credentials, type ServiceError } from '@grpc/grpc-js';
import {
  CleanupRequestSchema,
  CommitSnapshotRequestSchema,
  type Info,
  ListSnapshotsRequestSchema,
  MountsRequestSchema,
  PrepareSnapshotRequestSchema,
  RemoveSnapshotRequestSchema,
  Snapshots,
  StatSnapshotRequestSchema,
  ViewSnapshotRequestSchema,
} from '../../plugin/snapshotter/gen/containerd/services/snapshots/v1/snapshots_pb.ts';
import type { Mount } from '../../plugin/snapshotter/gen/containerd/types/mount_pb.ts';
import { serviceDefinitionOf } from '../../plugin/snapshotter/grpc-adapter.ts';

const DEFINITION = serviceDefinitionOf(Snapshots);

/** gRPC's numbers for what tests look at. */
export const CODE = { notFound: 5, alreadyExists: 6, failedPrecondition: 9, unavailable: 14 } as const;

export function codeOf(error: unknown): number | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'number' ? error.code : undefined;
}

export class SnapshotterClient implements Disposable {
  private readonly client: Client;

  constructor(socketPath: string) {
    this.client = new Client(`unix:${socketPath}`, credentials.createInsecure());
  }

  async prepare(key: string, parent = '', labels: Record<string, string> = {}): Promise<Mount[]> {
    return ((await this.call('prepare', PrepareSnapshotRequestSchema, { key, parent, labels })) as { mounts: Mount[] }).mounts;
  }

  async view(key: string, parent: string): Promise<Mount[]> {
    return ((await this.call('view', ViewSnapshotRequestSchema, { key, parent })) as { mounts: Mount[] }).mounts;
  }

  async mounts(key: string): Promise<Mount[]> {
    return ((await this.call('mounts', MountsRequestSchema, { key })) as { mounts: Mount[] }).mounts;
  }

  async commit(name: string, key: string, labels: Record<string, string> = {}): Promise<void> {
    await this.call('commit', CommitSnapshotRequestSchema, { name, key, labels });
  }

  async remove(key: string): Promise<void> {
    await this.call('remove', RemoveSnapshotRequestSchema, { key });
  }

  async stat(key: string): Promise<Info> {
    const { info } = (await this.call('stat', StatSnapshotRequestSchema, { key })) as { info?: Info };
    if (info === undefined) throw new Error(`stat ${key} answered nothing`);
    return info;
  }

  async cleanup(): Promise<void> {
    await this.call('cleanup', CleanupRequestSchema, {});
  }

  async list(filters: string[] = []): Promise<Info[]> {
    const method = DEFINITION.list!;
    const request = create(ListSnapshotsRequestSchema, { filters });
    const stream = this.client.makeServerStreamRequest(method.path, method.requestSerialize, method.responseDeserialize, request);
    const all: Info[] = [];
    for await (const answer of stream) all.push(...(answer as { info: Info[] }).info);
    return all;
  }

  private call<T extends DescMessage>(name: string, schema: T, values: MessageInitShape<T>): Promise<unknown> {
    const method = DEFINITION[name]!;
    const request: MessageShape<T> = create(schema, values);
    return new Promise((resolve, reject) => {
      this.client.makeUnaryRequest(
        method.path,
        method.requestSerialize,
        method.responseDeserialize,
        request,
        (error: ServiceError | null, answer: unknown) => {
          if (error === null) resolve(answer);
          else reject(error);
        },
      );
    });
  }

  [Symbol.dispose](): void {
    this.client.close();
  }
}

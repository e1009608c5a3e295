/**
 * A client of containerd's own snapshots service, in front of any snapshotter: every call is kept in a
 * namespace and labelled against garbage collection. Source: containerd api/services/snapshots/v1/snapshots.proto (field numbers).
 */
import { Client, credentials, Metadata, type ServiceError } from '@grpc/grpc-js';
import { decode, encode, type Message, type MessageTable } from './protobuf-table.ts';

export interface SnapshotMount {
  type: string;
  source: string;
  options: string[];
}

const MOUNTS: MessageTable = {
  mounts: [1, { repeated: { type: [1, 'string'], source: [2, 'string'], options: [4, { repeated: 'string' }] } }],
};
const PREPARE: MessageTable = { snapshotter: [1, 'string'], key: [2, 'string'], parent: [3, 'string'], labels: [4, { map: true }] };
const BY_KEY: MessageTable = { snapshotter: [1, 'string'], key: [2, 'string'] };

export class ContainerdSnapshots implements Disposable {
  private readonly client: Client;
  private readonly snapshotter: string;
  private readonly metadata = new Metadata();

  constructor(socket: string, snapshotter: string, namespace = 'default') {
    this.client = new Client(`unix:${socket}`, credentials.createInsecure());
    this.snapshotter = snapshotter;
    this.metadata.set('containerd-namespace', namespace);
  }

  private call(name: string, request: MessageTable, message: Message, response: MessageTable, timeoutMs: number): Promise<Message> {
    return new Promise((resolve, reject) => {
      this.client.makeUnaryRequest(
        `/containerd.services.snapshots.v1.Snapshots/${name}`,
        (value: Message) => Buffer.from(encode(request, value)),
        (bytes: Buffer) => decode(response, bytes),
        { snapshotter: this.snapshotter, ...message },
        this.metadata,
        { deadline: Date.now() + timeoutMs },
        (error: ServiceError | null, value?: Message) => (error === null ? resolve(value ?? {}) : reject(error)),
      );
    });
  }

  private async make(name: 'Prepare' | 'View', key: string, parent: string, labels: Record<string, string>): Promise<SnapshotMount[]> {
    const kept = { 'containerd.io/gc.root': 'test', ...labels };
    const answer = await this.call(name, PREPARE, { key, parent, labels: kept }, MOUNTS, 60_000);
    return answer.mounts as SnapshotMount[];
  }

  /** Fails with the gRPC error; so do all calls. */
  prepare(key: string, parent: string, labels: Record<string, string> = {}): Promise<SnapshotMount[]> {
    return this.make('Prepare', key, parent, labels);
  }

  view(key: string, parent: string, labels: Record<string, string> = {}): Promise<SnapshotMount[]> {
    return this.make('View', key, parent, labels);
  }

  async remove(key: string): Promise<void> {
    await this.call('Remove', BY_KEY, { key }, {}, 60_000);
  }

  [Symbol.dispose](): void {
    this.client.close();
  }
}

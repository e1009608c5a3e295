/** The Snapshots service: requests of containerd's API to calls of the snapshotter. */
import { once } from 'node:events';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import { EmptySchema, type Timestamp, timestampFromMs } from '@bufbuild/protobuf/wkt';
import type { ServerUnaryCall, ServerWritableStream, sendUnaryData, UntypedServiceImplementation } from '@grpc/grpc-js';
import { systemClock } from '../base/clock.ts';
import { AppError, describeError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { LogRepeater } from '../base/log-repeater.ts';
import type * as pb from './gen/containerd/services/snapshots/v1/snapshots_pb.ts';
import {
  type InfoSchema,
  Kind,
  ListSnapshotsResponseSchema,
  MountsResponseSchema,
  PrepareSnapshotResponseSchema,
  StatSnapshotResponseSchema,
  UpdateSnapshotResponseSchema,
  UsageResponseSchema,
  ViewSnapshotResponseSchema,
} from './gen/containerd/services/snapshots/v1/snapshots_pb.ts';
import { statusOf } from './grpc-adapter.ts';
import type { SnapshotInfo } from './info.ts';
import type { Snapshotter } from './snapshotter.ts';

const KINDS = { view: Kind.VIEW, active: Kind.ACTIVE, committed: Kind.COMMITTED } as const;

function timestamp(us: number): Timestamp {
  const seconds = Math.floor(us / 1_000_000);
  return { ...timestampFromMs(0), seconds: BigInt(seconds), nanos: (us - seconds * 1_000_000) * 1000 };
}

function infoMessage(info: SnapshotInfo): MessageInitShape<typeof InfoSchema> {
  return {
    name: info.name,
    parent: info.parent,
    kind: KINDS[info.kind],
    createdAt: timestamp(info.createdUs),
    updatedAt: timestamp(info.updatedUs),
    labels: { ...info.labels },
  };
}

/** Aborts when the client gives the call up. */
function signalOf(call: { on(event: 'cancelled', listener: () => void): unknown; cancelled: boolean }): AbortSignal {
  const controller = new AbortController();
  const abort = (): void => controller.abort(new AppError('Canceled', { op: 'call', subject: 'client', what: 'gave the call up' }));
  if (call.cancelled) abort();
  call.on('cancelled', abort);
  return controller.signal;
}

type Unary<Request, Response> = (request: Request, signal: AbortSignal) => Response | Promise<Response>;

/** Handlers for grpc-js. Failures become statuses; those that are not part of the contract are logged in full. */
export function snapshotsService(snapshotter: Snapshotter, logger: Logger): UntypedServiceImplementation {
  // containerd asks for the usage of every snapshot six times a minute, also of one that cannot be measured.
  const repeater = new LogRepeater(logger, systemClock);
  const report = (method: string, error: unknown): void => {
    if (!(error instanceof AppError)) repeater.write('error', { err: error }, `${method} failed unexpectedly`);
    else if (error.code === 'Internal' || error.code === 'DataLoss')
      repeater.write('error', { reason: describeError(error) }, `${method} failed`);
    else logger.debug({ method, code: error.code, reason: describeError(error) }, 'call refused');
  };
  const unary = <Request, Response>(method: string, handle: Unary<Request, Response>) => {
    return async (call: ServerUnaryCall<Request, Response>, callback: sendUnaryData<Response>): Promise<void> => {
      try {
        callback(null, await handle(call.request, signalOf(call)));
      } catch (error) {
        report(method, error);
        callback(statusOf(error));
      }
    };
  };
  const list = async (call: ServerWritableStream<pb.ListSnapshotsRequest, pb.ListSnapshotsResponse>): Promise<void> => {
    try {
      const signal = signalOf(call);
      for (const batch of snapshotter.list(call.request.filters)) {
        if (batch.length === 0) continue;
        if (!call.write(create(ListSnapshotsResponseSchema, { info: batch.map(infoMessage) }))) await once(call, 'drain', { signal });
        signal.throwIfAborted();
      }
      call.end();
    } catch (error) {
      report('List', error);
      call.emit('error', statusOf(error));
    }
  };
  const empty = create(EmptySchema);
  return {
    prepare: unary('Prepare', async (request: pb.PrepareSnapshotRequest, signal) =>
      create(PrepareSnapshotResponseSchema, { mounts: await snapshotter.prepare(request.key, request.parent, request.labels, signal) }),
    ),
    view: unary('View', async (request: pb.ViewSnapshotRequest, signal) =>
      create(ViewSnapshotResponseSchema, { mounts: await snapshotter.view(request.key, request.parent, request.labels, signal) }),
    ),
    mounts: unary('Mounts', async (request: pb.MountsRequest, signal) =>
      create(MountsResponseSchema, { mounts: await snapshotter.mounts(request.key, signal) }),
    ),
    commit: unary('Commit', async (request: pb.CommitSnapshotRequest, signal) => {
      await snapshotter.commit(request.name, request.key, request.labels, signal);
      return empty;
    }),
    remove: unary('Remove', (request: pb.RemoveSnapshotRequest) => {
      snapshotter.remove(request.key);
      return empty;
    }),
    stat: unary('Stat', (request: pb.StatSnapshotRequest) =>
      create(StatSnapshotResponseSchema, { info: infoMessage(snapshotter.stat(request.key)) }),
    ),
    update: unary('Update', (request: pb.UpdateSnapshotRequest) => {
      const { info, updateMask } = request;
      if (info === undefined) throw new AppError('InvalidArgument', { op: 'update', subject: 'snapshot', what: 'the request has no info' });
      return create(UpdateSnapshotResponseSchema, {
        info: infoMessage(snapshotter.update(info.name, info.labels, updateMask?.paths ?? [])),
      });
    }),
    list,
    usage: unary('Usage', async (request: pb.UsageRequest) => {
      const { bytes, inodes } = await snapshotter.usageOf(request.key);
      return create(UsageResponseSchema, { size: BigInt(bytes), inodes: BigInt(inodes) });
    }),
    cleanup: unary('Cleanup', async () => {
      await snapshotter.cleanup();
      return empty;
    }),
  };
}

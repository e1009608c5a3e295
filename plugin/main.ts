/**
 * The sidecar: the control-plane process. Started by the keeper, which probes it; containers do not notice when it is replaced.
 *
 * Usage: main [--config FILE]
 * SIGTERM, or the keeper's `stop`, ends it in order and leaves mounts alone unless told otherwise; the keeper's death ends it too.
 */
import { parseArgs } from 'node:util';
import { type Config, loadConfig } from './base/config/config.ts';
import { AppError, describeError } from './base/errors.ts';
import type { FromKeeper, ToKeeper } from './base/keeper-protocol.ts';
import { createLogger, type Logger } from './base/log.ts';
import { listMountPoints, mountDevice, unmountDevice } from './kernel/mount-device.ts';
import {
  type BlockDevices,
  type ImageMounter,
  type ImageResolver,
  type SnapshotterService,
  startSnapshotter,
} from './snapshotter/service.ts';

/** Of Prepare's deadline, the share that resolving may take; the rest is for answering. */
const RESOLVE_SHARE = 0.7;

function imageMounter(readAheadKib: number): ImageMounter {
  return {
    mount: ({ devicePath, target }, signal) => mountDevice({ devicePath, target, readAheadKib }, signal),
    unmount: (target, signal) => unmountDevice([target], signal),
    isMounted: async (target) => (await listMountPoints()).includes(target),
  };
}

function tellKeeper(message: ToKeeper): void {
  process.send?.(message);
}

/** Wires and starts the control plane. Errors: those of its parts; blockd and the registry may be away. */
export async function startSidecar(
  config: Config,
  parts: { devices: BlockDevices; resolver: ImageResolver; logger: Logger },
): Promise<SnapshotterService> {
  const { prepareDeadlineMs, socket } = config.snapshotter;
  return startSnapshotter(
    {
      rootDir: config.paths.root,
      socketPath: socket,
      prepareDeadlineMs,
      resolveDeadlineMs: prepareDeadlineMs * RESOLVE_SHARE,
      mountOptions: [],
      remapIds: false,
    },
    { ...parts, mounter: imageMounter(config.blockd.readAheadKib) },
  );
}

function away(op: string): AppError {
  return new AppError('Unavailable', { op, subject: 'data plane', what: 'this process was started without one' });
}

/** Stands for a data plane that is not there: ordinary images work, accelerated ones are refused with the reason. */
const NO_DEVICES: BlockDevices = {
  attach: () => Promise.reject(away('attach')),
  check: () => Promise.reject(away('check')),
  detach: () => Promise.reject(away('detach')),
  list: () => Promise.reject(away('list')),
};

/** Stands for a registry client that is not there: every pull is ordinary. */
const NO_RESOLVER: ImageResolver = {
  parseReference: (reference) => {
    throw new AppError('Unavailable', {
      op: 'parse reference',
      subject: reference,
      what: 'this process was started without a registry client',
    });
  },
  resolveManifest: (reference) =>
    Promise.reject(
      new AppError('Unavailable', { op: 'fetch manifest', subject: reference, what: 'this process was started without a registry client' }),
    ),
};

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { config: { type: 'string' } } });
  const config = loadConfig(values.config);
  const logger = createLogger('sidecar', config.log.level);
  const service = await startSidecar(config, { devices: NO_DEVICES, resolver: NO_RESOLVER, logger });
  let isStopping = false;
  const stop = (unmount: boolean): void => {
    if (isStopping) return;
    isStopping = true;
    service.stop({ unmount }).then(
      () => process.exit(0),
      (error: unknown) => {
        logger.error({ err: error }, 'did not end in order');
        process.exit(1);
      },
    );
  };
  process.on('SIGTERM', () => stop(false));
  process.on('SIGINT', () => stop(false));
  process.on('disconnect', () => stop(false));
  process.on('message', (message: FromKeeper) => {
    if (message.op === 'ping') tellKeeper({ op: 'pong', id: message.id });
    else if (message.op === 'stop') stop(message.unmount);
  });
  logger.info({ root: config.paths.root, socket: config.snapshotter.socket }, 'serving');
  tellKeeper({ op: 'ready' });
}

if (import.meta.main) {
  main().catch((error: unknown) => {
    createLogger('sidecar').fatal({ err: error, reason: describeError(error) }, 'cannot start');
    process.exit(1);
  });
}

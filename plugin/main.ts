/**
 * The sidecar: the control-plane process. Started by the keeper, which probes it; containers do not notice when it is replaced.
 *
 * Usage: main [--config FILE]
 * SIGTERM, or the keeper's `stop`, ends it in order and leaves mounts alone unless told otherwise; the keeper's death kills it.
 */
import fs from 'node:fs';
import { flushCompileCache } from 'node:module';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { type Config, loadConfig } from './base/config/config.ts';
import { describeError } from './base/errors.ts';
import type { FromKeeper, ToKeeper } from './base/keeper-protocol.ts';
import { createLogger, type Logger } from './base/log.ts';
import { BlockdClient } from './blockd/client.ts';
import { checkIdmappedLowers, listMountPoints, mountDevice, unmountDevice } from './kernel/mount-device.ts';
import { dieWithParent } from './kernel/process.ts';
import { startAdmin } from './main/admin.ts';
import { GatheredAdminServices } from './main/admin-services.ts';
import { startImageCaches } from './main/caches.ts';
import { startConversion } from './main/convert.ts';
import { openVault, startImageService } from './main/cri.ts';
import { createImageResolver } from './main/image-resolver.ts';
import { Materializer } from './main/materialize.ts';
import { registryCredentials } from './main/registry-credentials.ts';
import type { CredentialVault } from './registry/vault/vault.ts';
import { type BlockDevices, type ImageMounter, type SnapshotterService, startSnapshotter } from './snapshotter/service.ts';

/** Of Prepare's deadline, the share that resolving may take; the rest is for answering. */
const RESOLVE_SHARE = 0.7;

/** Events of blockd that name a blob which its registry does not give. */
const TROUBLES: ReadonlySet<string> = new Set(['fetch-waiting', 'fetch-failed']);

function imageMounter(readAheadKib: number): ImageMounter {
  return {
    mount: ({ devicePath, target }, signal) => mountDevice({ devicePath, target, readAheadKib }, signal),
    unmount: (target, signal) => unmountDevice([target], signal),
    checkIdmappedLowers,
    isMounted: async (target) => (await listMountPoints()).includes(target),
  };
}

function blockDevices(client: BlockdClient): BlockDevices {
  return {
    attach: (spec, signal) => client.attach(spec, signal),
    check: (spec, signal) => client.check(spec, signal),
    detach: (id, signal) => client.detach(id, signal),
    list: (signal) => client.devices(signal),
    async troubledBlobs(sinceMs, signal) {
      const events = await client.events(0, signal);
      return events.filter(({ kind, atMs }) => TROUBLES.has(kind) && atMs >= sinceMs).map((event) => event.subject);
    },
    fetchWhole: (blob, signal) => client.fetchWhole(blob, signal),
  };
}

/** Wires and starts the control plane. Errors: those of its parts; blockd and the registry may be away. */
async function startSidecar(config: Config, blockd: BlockdClient, vault: CredentialVault, logger: Logger): Promise<SnapshotterService> {
  const { prepareDeadlineMs, watchIntervalMs, socket, mountOptions, remapIds } = config.snapshotter;
  const { enabled: isEnabled, prefer, lookupBudgetMs, negativeTtlMs, trusted, elsewhere } = config.twins;
  return startSnapshotter(
    {
      rootDir: config.paths.root,
      socketPath: socket,
      prepareDeadlineMs,
      resolveDeadlineMs: prepareDeadlineMs * RESOLVE_SHARE,
      mountOptions,
      remapIds,
      watchIntervalMs,
      twins: { isEnabled, prefer, lookupBudgetMs, negativeTtlMs, trusted, elsewhere },
    },
    {
      devices: blockDevices(blockd),
      mounter: imageMounter(config.blockd.readAheadKib),
      resolver: createImageResolver({ config, logger, vault: vault.sources() }),
      logger,
    },
  );
}

/** The version of the package that this file belongs to: beside the sources, or above the compiled ones. */
function readVersion(): string {
  for (const up of ['..', '../..']) {
    const file = path.join(import.meta.dirname, up, 'package.json');
    if (fs.existsSync(file)) return (JSON.parse(fs.readFileSync(file, 'utf8')) as { version: string }).version;
  }
  return 'unknown';
}

function tellKeeper(message: ToKeeper): void {
  process.send?.(message);
}

/** Starts every part, and answers what ends them in the opposite order. */
async function startParts(config: Config, logger: Logger): Promise<(options: { unmount: boolean }) => Promise<void>> {
  const version = readVersion();
  const blockd = new BlockdClient(path.join(config.paths.run, 'blockd.sock'));
  const vault = await openVault(config, logger);
  const service = await startSidecar(config, blockd, vault, logger);
  const materializer = new Materializer({
    containerdAddress: config.containerd.address,
    fetchWhole: (source, signal) => blockd.fetchWhole(source, signal),
    logger,
  });
  const caches = await startImageCaches(config, service, blockd, logger);
  const convert = await startConversion(config, service, caches, logger);
  const cri = await startImageService({ config, vault, snapshotter: service, blockd, caches, logger });
  const services = new GatheredAdminServices({
    config,
    version,
    snapshotter: service,
    blockd,
    convert,
    caches,
    materialize: (reference, signal) => materializer.materialize(reference, signal),
  });
  const admin = await startAdmin(
    config.admin,
    { database: service.database, services, caches, convert, pods: cri, registries: registryCredentials(vault), version },
    logger,
  );
  return async ({ unmount }) => {
    await admin.close();
    await cri.stop();
    await caches.stop();
    await convert.stop();
    await service.stop({ unmount });
  };
}

async function main(): Promise<void> {
  // Also when it hangs: another one starts with the next keeper.
  if (!dieWithParent(process.ppid)) process.exit(1);
  process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
  const { values } = parseArgs({ options: { config: { type: 'string' } } });
  const config = loadConfig(values.config);
  const logger = createLogger('sidecar', config.log.level);
  const started = startParts(config, logger);
  let isStopping = false;
  const stop = (unmount: boolean): void => {
    if (isStopping) return;
    isStopping = true;
    started
      .then((end) => end({ unmount }))
      .then(
        () => process.exit(0),
        (error: unknown) => {
          logger.error({ err: error }, 'did not end in order');
          process.exit(1);
        },
      );
  };
  process.on('SIGTERM', () => stop(false));
  // Ctrl-C goes to all three processes; the keeper ends the others in their order.
  process.on('SIGINT', () => {
    if (!process.connected) stop(false);
  });
  let isStarted = false;
  process.on('message', (message: FromKeeper) => {
    // No answer before: the keeper ends a start that hangs.
    if (message.op === 'ping' && isStarted) tellKeeper({ op: 'pong', id: message.id });
    else if (message.op === 'stop') stop(message.unmount);
  });
  await started;
  isStarted = true;
  logger.info({ root: config.paths.root, socket: config.snapshotter.socket }, 'serving');
  tellKeeper({ op: 'ready' });
  // A process that is killed never writes what it compiled; the next start is quicker for it.
  flushCompileCache();
}

main().catch((error: unknown) => {
  createLogger('sidecar').fatal({ err: error, reason: describeError(error) }, 'cannot start');
  process.exit(1);
});

/**
 * blockd: the data plane. Serves block devices over FUSE from layers that are partly local and fetches the rest; knows only what is on
 * disk and what the registry sends, and works without the control plane. Started by the keeper, which holds its connections.
 *
 * Readers wait while this process starts, so it serves its devices before it loads what they do not need: the control interface, and
 * the registry client until a read misses.
 *
 * Usage: main [--config FILE]
 */
import { flushCompileCache } from 'node:module';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { systemClock } from '../base/clock.ts';
import { type Config, loadConfig } from '../base/config/config.ts';
import { describeError } from '../base/errors.ts';
import { createLogger, type Logger } from '../base/log.ts';
import { ChunkStore } from '../file/store/chunk-store.ts';
import { FusePool } from '../fuse/pool.ts';
import { loadCodec } from '../kernel/codecs.ts';
import { lockForLife } from '../kernel/file-lock.ts';
import { listMountPoints, unmountDevice } from '../kernel/mount-device.ts';
import { dieWithParent } from '../kernel/process.ts';
import { ChunkVerifier } from './chunk-verifier.ts';
import { Devices } from './devices.ts';
import { EventRing } from './events.ts';
import { FetchScheduler } from './fetch/fetch-scheduler.ts';
import type { FetchRange } from './fetch/fetch-types.ts';
import { Fills } from './fills.ts';
import type { Grants } from './grants.ts';
import { watchIdleMemory } from './idle-memory.ts';
import { KeeperLink } from './keeper-link.ts';
import { PinFiles } from './pin-files.ts';
import { Pins } from './pins.ts';
import { InflateThreads } from './spans/inflate-threads.ts';
import { SpanMaker } from './spans/span-maker.ts';
import { SpecFiles } from './spec-files.ts';
import type { DataPlaneStats } from './stats.ts';

/** A read from local bytes takes far less; a worker silent for this long is spinning or stuck, and another process does better. */
const WORKER_STUCK_MS = 3000;
const WORKER_LOOK_MS = 500;

/** Spans are inflated while the FUSE workers serve other reads; one thread inflates some 400 MB/s. */
const INFLATE_THREADS = 2;

/** The keeper gives up a start after 3.5 s and tries again. */
const PREDECESSOR_LIMIT_MS = 3000;

/** What is undone at an ordered stop may take this long; the keeper kills at its own limit. */
const CLOSE_LIMIT_MS = 700;

/** The registry client's fetch function; the client is loaded when the first read misses. */
function registryFetch(config: Config, logger: Logger): FetchRange {
  const load = async (): Promise<FetchRange> => {
    const { createRegistryRanges } = await import('./range-source.ts');
    return createRegistryRanges(config, logger);
  };
  let loaded: Promise<FetchRange> | undefined;
  return async (...request) => {
    loaded ??= load();
    return (await loaded)(...request);
  };
}

async function main(): Promise<void> {
  const parentPid = process.ppid;
  if (!dieWithParent(parentPid)) process.exit(1);
  const { values } = parseArgs({ options: { config: { type: 'string' } } });
  const config = loadConfig(values.config);
  const log = createLogger('blockd', config.log.level);
  // Whoever served these devices before is gone then: what a dying thread takes from a connection after the kernel was asked to repeat
  // everything would never be answered.
  await lockForLife(path.join(config.paths.run, 'blockd.lock'), AbortSignal.timeout(PREDECESSOR_LIMIT_MS));
  const clock = systemClock;
  const events = new EventRing(clock);
  const storeDir = path.join(config.paths.root, 'store');
  const chunks = new ChunkVerifier();
  const store = await ChunkStore.open({
    rootDir: storeDir,
    budgetBytes: config.store.budgetBytes,
    memoryBytes: config.store.memoryBytes,
    checkpointMs: config.store.checkpointMs,
    verifyUnit: (blobId, unitIndex, bytes) => chunks.verifyUnit(blobId, unitIndex, bytes),
    clock,
    log,
    onEvent: (event) => {
      const isBad = event.kind !== 'store-recovered';
      const message = 'detail' in event ? event.detail : 'fetched bytes are kept on disk again';
      events.add({ severity: isBad ? 'warning' : 'info', kind: event.kind, subject: 'digest' in event ? event.digest : storeDir, message });
      if (event.kind === 'blob-corrupt') void spans.forgetUnchecked(event.digest);
    },
  });
  store.onUnreferenced((blobId) => chunks.forget(blobId));
  const ownFetch = registryFetch(config, log);
  let granted: FetchRange | undefined;
  const loadGrants = async (): Promise<Grants> => {
    const { Grants: Loaded } = await import('./grants.ts');
    const loaded = new Loaded({ config, log, otherwise: ownFetch });
    granted = loaded.fetchRange;
    return loaded;
  };
  let grants: Promise<Grants> | undefined;
  const scheduler = new FetchScheduler({
    store,
    fetchRange: (...request) => (granted ?? ownFetch)(...request),
    clock,
    log,
    patienceMs: config.fetch.patienceMs,
    limits: { inFlight: config.fetch.concurrency },
    ...(config.fetch.fill === 'on' ? { fill: { delayMs: config.fetch.fillDelayMs, rateBytesPerS: config.fetch.fillRateBytesPerS } } : {}),
    onEvent: (event) => {
      const message = 'detail' in event ? `${event.code}: ${event.detail}` : `after ${event.waitedMs} ms`;
      const severity = event.kind === 'fetch-failed' ? 'error' : event.kind === 'fetch-waiting' ? 'warning' : 'info';
      events.add({ severity, kind: event.kind, subject: event.digest, message });
    },
  });
  const pool = new FusePool({
    workers: config.blockd.workers,
    maxBackground: config.blockd.maxBackground,
    onMessage: (message) => devices.receive(message),
    onFailure: (error) => {
      log.fatal({ err: error }, 'a worker ended; leaving so that another process goes on');
      process.kill(process.pid, 'SIGKILL');
    },
  });
  const inflating = new InflateThreads({
    threads: INFLATE_THREADS,
    onFailure: (error) => {
      log.fatal({ err: error }, 'a thread that inflates ended; leaving so that another process goes on');
      process.kill(process.pid, 'SIGKILL');
    },
  });
  const spans = new SpanMaker({ store, scheduler, threads: inflating, log });
  const fills = new Fills({ store, scheduler, chunks });
  const pinFiles = new PinFiles(path.join(config.paths.root, 'pins'), log);
  const pins = new Pins({ store, scheduler, chunks, files: pinFiles, budgetBytes: config.store.budgetBytes, log });

  let isStopping = false;
  const stop = async (unmount: boolean): Promise<void> => {
    if (isStopping) return;
    isStopping = true;
    if (unmount) await devices.unmountAll();
    const limit = setTimeout(() => process.exit(0), CLOSE_LIMIT_MS);
    // Readers wait from the moment that the threads end: what can be done before is done before.
    await store.checkpoint();
    fills.close();
    await Promise.all([pool.close(), inflating.close()]);
    clearTimeout(limit);
    process.exit(0);
  };
  const stopOrDie = (unmount: boolean): void => {
    stop(unmount).catch((error: unknown) => {
      log.error({ reason: describeError(error) }, 'did not end in order');
      process.exit(1);
    });
  };
  const keeper = new KeeperLink({ onStop: ({ unmount }) => stopOrDie(unmount), log });
  const devices: Devices = new Devices({
    store,
    scheduler,
    codec: loadCodec(),
    chunks,
    spans,
    pool,
    keeper,
    specFiles: new SpecFiles(path.join(config.paths.root, 'devices')),
    deviceDir: path.join(config.paths.run, 'devices'),
    mountPoints: listMountPoints,
    unmount: unmountDevice,
    onAttached: (device) => {
      for (const handle of device.handles) scheduler.attach(handle);
    },
    clock,
    events,
    log,
    logLinesPerMinute: config.log.deviceLinesPerMinute,
    verify: config.verify,
  });
  // Nothing may be evicted before it is known what is pinned.
  await pins.restore();
  await devices.restore();
  const stats = async (): Promise<DataPlaneStats> => ({
    pid: process.pid,
    upMs: Math.round(performance.now()),
    fuse: pool.totals(),
    store: await store.refreshUsage(),
    fetch: scheduler.stats(),
    waitingReads: devices.waitingReads,
    residentBytes: process.memoryUsage.rss(),
  });
  const { createControlApp, listenControl } = await import('./control.ts');
  await listenControl(
    createControlApp({ devices, fills, pins, grants: () => (grants ??= loadGrants()), events, store, stats, log }),
    path.join(config.paths.run, 'blockd.sock'),
  );

  setInterval(() => {
    const silentMs = pool.longestSilenceMs();
    if (silentMs < WORKER_STUCK_MS) return;
    log.fatal({ silentMs: Math.round(silentMs) }, 'a worker is stuck; leaving so that another process goes on');
    process.kill(process.pid, 'SIGKILL');
  }, WORKER_LOOK_MS);
  process.on('SIGTERM', () => stopOrDie(false));
  // Ctrl-C goes to all three; the keeper ends the others in their order.
  process.on('SIGINT', () => {
    if (!process.connected) stopOrDie(false);
  });
  process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
  watchIdleMemory(() => scheduler.fetchedBytes);
  log.info({ root: config.paths.root, devices: devices.list().length }, 'serving');
  keeper.ready();
  // A process that is killed never writes what it compiled; the next start is quicker for it.
  flushCompileCache();
}

main().catch((error: unknown) => {
  createLogger('blockd').fatal({ err: error, reason: describeError(error) }, 'cannot start');
  process.exit(1);
});

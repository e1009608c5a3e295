/**
 * The keeper: holds the FUSE connections and keeps the data plane (blockd) and the control plane (sidecar) running. It parses nothing
 * from outside and talks to nobody but its children and the service manager, so that it has no reason to die; and if it is killed all
 * the same, its descriptors lie in the manager's store.
 *
 * Usage: keeper/main [--app DIR] [options for the children …]
 * Signals: SIGHUP replaces both children (upgrade); SIGTERM ends and leaves the mounts to the next keeper if the manager keeps the
 * descriptors, else unmounts; SIGINT unmounts everything.
 */
import fs from 'node:fs';
import { flushCompileCache } from 'node:module';
import path from 'node:path';
import { describeError } from '../base/errors.ts';
import { DESCRIPTOR_SOCKET_FD, type FromKeeper, type ToKeeper } from '../base/keeper-protocol.ts';
import { createLogger } from '../base/log.ts';
import { descriptorSocketPair, notifyServiceManager } from '../kernel/fd-passing.ts';
import { Child, setNiceness } from './child.ts';
import { Connections } from './connections.ts';

/** Readers stall while the data plane is away: a replacement that does not end by itself is killed. */
const REPLACE_LIMIT_MS = 1000;
const STOP_LIMIT_MS = 20_000;

/** A start that hangs must not keep readers waiting; the control plane opens a database, and nobody's reads wait for it. */
const START_LIMITS_MS = { blockd: [3500, 8000, 30_000], sidecar: [15_000, 30_000, 60_000] } as const;

/** Readers in containers wait for the data plane, and for the keeper that starts it; what runs beside them does not. */
const DATA_PLANE_NICENESS = -10;

/** The control plane starts (or is replaced) when the data plane serves, so that readers have the processor first; or after this. */
const DATA_PLANE_FIRST_MS = 1500;

/** Small heaps: the sum over three processes is what an idle host pays. */
const HEAP_FLAGS = {
  // Each miss brings a socket buffer of 64 KiB, which counts as garbage of V8: its usual limits are reached thirty times a second, and
  // collecting took half of blockd's CPU. With these it takes more memory while it fetches, and gives it back when it rests (idle-memory.ts).
  blockd: ['--max-semi-space-size=8', '--heap-growing-percent=300', '--expose-gc', '--max-old-space-size=512'],
  sidecar: ['--max-semi-space-size=2', '--max-old-space-size=512'],
};

const log = createLogger('keeper');
const args = process.argv.slice(2);
const appAt = args.indexOf('--app');
const appDir = appAt >= 0 ? args[appAt + 1]! : path.resolve(import.meta.dirname, '..', '..');
const childArgs = appAt >= 0 ? args.toSpliced(appAt, 2) : args;
const extension = path.extname(import.meta.filename);

const notifySocket = process.env.NOTIFY_SOCKET;
const hasStore = notifySocket !== undefined && process.env.FDSTORE !== '0';
const connections = new Connections(process.env, process.pid, log);
const [keeperSocket, blockdSocket] = descriptorSocketPair();

function commandOf(name: 'blockd' | 'sidecar', script: string): () => { program: string; args: string[] } {
  return () => {
    // The link is followed at each start, so that one process never mixes two versions.
    const app = fs.realpathSync(appDir);
    const ownNode = path.join(app, 'node_modules', '.bin', 'node');
    const program = fs.existsSync(ownNode) ? fs.realpathSync(ownNode) : process.execPath;
    return { program, args: [...HEAP_FLAGS[name], path.join(app, 'plugin', `${script}${extension}`), ...childArgs] };
  };
}

function handleRequest(message: ToKeeper, reply: (message: FromKeeper) => void): void {
  if (message.op === 'ready' || message.op === 'pong') return;
  const { id } = message;
  try {
    switch (message.op) {
      case 'list':
        reply({ op: 'reply', id, devices: connections.list() });
        return;
      case 'open':
        connections.open(message.device, message.mountPath);
        connections.send(message.device, message.mountPath, keeperSocket);
        break;
      case 'take':
        connections.send(message.device, message.mountPath, keeperSocket);
        break;
      case 'close':
        connections.close(message.device);
        break;
    }
    reply({ op: 'reply', id });
  } catch (error) {
    log.error({ err: error, request: message.op }, 'request of blockd failed');
    reply({ op: 'reply', id, error: describeError(error) });
  }
}

let isStopping = false;
let readySaid = false;
let dataPlaneReady = Promise.withResolvers<void>();
function childReady(): void {
  if (blockd.ready) dataPlaneReady.resolve();
  if (readySaid || !blockd.ready || !sidecar.ready) return;
  readySaid = true;
  notifyServiceManager(notifySocket, 'READY=1\nSTATUS=serving');
  log.info('ready');
}

const blockd = new Child({
  name: 'blockd',
  command: commandOf('blockd', 'blockd/main'),
  socketFd: blockdSocket,
  startLimitsMs: START_LIMITS_MS.blockd,
  niceness: DATA_PLANE_NICENESS,
  log,
  onReady: childReady,
  onRequest: handleRequest,
});
const sidecar = new Child({
  name: 'sidecar',
  command: commandOf('sidecar', 'main'),
  startLimitsMs: START_LIMITS_MS.sidecar,
  niceness: 0,
  log,
  onReady: childReady,
  onRequest: handleRequest,
});

async function dataPlaneFirst(): Promise<void> {
  const limit = Promise.withResolvers<void>();
  const timer = setTimeout(limit.resolve, DATA_PLANE_FIRST_MS);
  await Promise.race([dataPlaneReady.promise, limit.promise]);
  clearTimeout(timer);
}

async function start(): Promise<void> {
  blockd.start();
  await dataPlaneFirst();
  if (!isStopping) sidecar.start();
}

let reloading: Promise<void> = Promise.resolve();
async function reload(): Promise<void> {
  if (isStopping) return;
  notifyServiceManager(notifySocket, 'STATUS=replacing both children');
  dataPlaneReady = Promise.withResolvers();
  await blockd.replace(REPLACE_LIMIT_MS);
  await dataPlaneFirst();
  // An end unmounts through the control plane, which may take longer than it has here.
  if (isStopping) return;
  await sidecar.replace(REPLACE_LIMIT_MS);
  notifyServiceManager(notifySocket, 'STATUS=serving');
}

async function stop(unmount: boolean): Promise<void> {
  if (isStopping) return;
  isStopping = true;
  notifyServiceManager(notifySocket, 'STOPPING=1');
  log.info({ unmount }, 'stopping');
  // A reload under way ends here: two orders to one child would cross.
  dataPlaneReady.resolve();
  await reloading;
  // The control plane first: it unmounts images, which may still read from the data plane.
  await sidecar.stop({ unmount, limitMs: STOP_LIMIT_MS });
  await blockd.stop({ unmount, limitMs: unmount ? STOP_LIMIT_MS : REPLACE_LIMIT_MS });
  if (unmount) connections.closeAll();
  process.exit(0);
}

process.on('SIGHUP', () => {
  // One after the other; each replaces both.
  reloading = reloading.then(reload).catch((err: unknown) => log.error({ err }, 'reload failed'));
});
process.on('SIGTERM', () => void stop(!hasStore));
process.on('SIGINT', () => void stop(true));
if (process.env.WATCHDOG_USEC !== undefined) setInterval(() => notifyServiceManager(notifySocket, 'WATCHDOG=1'), 1000);

setNiceness(process.pid, DATA_PLANE_NICENESS, log);
log.info({ taken: connections.list().length, socket: DESCRIPTOR_SOCKET_FD }, 'keeper started');
await start();
// A process that is killed never writes what it compiled; the next start is quicker for it.
flushCompileCache();

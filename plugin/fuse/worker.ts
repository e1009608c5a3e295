/**
 * A worker thread of the data plane: takes FUSE requests of every device from one epoll set and answers those whose bytes are local.
 * It never waits for anything but the next request; a read that misses goes to the main thread.
 */
import { parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { createDeviceFile } from '../file/device-file.ts';
import type { MissingRanges, RandomAccessFile } from '../file/file.ts';
import { BlobFile } from '../file/store/blob-file.ts';
import { loadCodec } from '../kernel/codecs.ts';
import { EpollWaiter, rearm, removeFromEpoll } from '../kernel/epoll.ts';
import { ERRNO, lastErrno, libc } from '../kernel/libc.ts';
import { CONTROL, DEVICE_COUNT, type FromWorker, STAT, type ToWorker, type WorkerStart } from './messages.ts';
import {
  IN_HEADER_BYTES,
  MAX_READ_BYTES,
  OPCODE,
  OUT_HEADER_BYTES,
  REQUEST_BUFFER_BYTES,
  readInit,
  writeAttributes,
  writeInit,
  writeOpen,
  writeOutHeader,
  writeStatfs,
} from './protocol.ts';

/** A worker looks at the stop flag, and gives a sign of life, at least this often. */
const WAIT_MS = 500;

/** Requests taken from one device before the others get their turn. */
const BURST = 64;

interface Served {
  fd: number;
  file: RandomAccessFile;
  /** This worker's row of the device's counts. */
  counts: Float64Array;
}

const start = workerData as WorkerStart;
const port = parentPort!;
const control = new Int32Array(start.control);
const stats = new Float64Array(start.stats);
const waiter = new EpollWaiter(start.epollFd);
const codec = loadCodec();
const devices = new Map<number, Served>();
const request = Buffer.alloc(REQUEST_BUFFER_BYTES);
const answer = Buffer.alloc(OUT_HEADER_BYTES + MAX_READ_BYTES);
let mailSeen = 0;

function post(message: FromWorker): void {
  port.postMessage(message);
}

/** Collects what one read misses; hints go to the main thread at once. */
class Collector implements MissingRanges {
  slot = 0;
  ranges: { blobId: number; offsetBytes: number; lengthBytes: number }[] = [];

  add(blobId: number, offsetBytes: number, lengthBytes: number): void {
    this.ranges.push({ blobId, offsetBytes, lengthBytes });
  }

  readAhead(blobId: number, offsetBytes: number): void {
    post({ type: 'readAhead', slot: this.slot, blobId, offsetBytes });
  }
}
const collector = new Collector();

function readMail(): void {
  mailSeen = Atomics.load(control, CONTROL.MAIL);
  for (let mail = receiveMessageOnPort(port); mail !== undefined; mail = receiveMessageOnPort(port)) {
    const message = mail.message as ToWorker;
    if (message.type === 'remove') {
      devices.delete(message.slot);
      post({ type: 'removed', slot: message.slot });
    } else {
      const files = message.blobs.map((blob) => new BlobFile(blob));
      const row = start.index * DEVICE_COUNT.COUNT;
      const counts = new Float64Array(message.counts).subarray(row, row + DEVICE_COUNT.COUNT);
      devices.set(message.slot, { fd: message.fd, file: createDeviceFile(message.tables, files, codec), counts });
    }
  }
}

function sendAnswer(fd: number, bytes: number): void {
  // ENOENT: the reader gave up meanwhile; ENODEV: the connection is gone. Neither is ours to act on.
  libc.write(fd, answer.subarray(0, bytes), bytes);
}

function answerError(fd: number, errno: number): void {
  writeOutHeader(answer, request, OUT_HEADER_BYTES, errno);
  sendAnswer(fd, OUT_HEADER_BYTES);
}

function serveRead(slot: number, device: Served): void {
  const offsetBytes = request.readUInt32LE(IN_HEADER_BYTES + 8) + request.readUInt32LE(IN_HEADER_BYTES + 12) * 2 ** 32;
  const wanted = Math.min(request.readUInt32LE(IN_HEADER_BYTES + 16), MAX_READ_BYTES);
  const lengthBytes = Math.max(0, Math.min(wanted, device.file.sizeBytes - offsetBytes));
  stats[STAT.READS]! += 1;
  device.counts[DEVICE_COUNT.READS]! += 1;
  device.counts[DEVICE_COUNT.BYTES]! += lengthBytes;
  collector.slot = slot;
  collector.ranges = [];
  let isLocal = false;
  try {
    isLocal = lengthBytes === 0 || device.file.readSync(offsetBytes, lengthBytes, answer, OUT_HEADER_BYTES, collector);
  } catch {
    // Corrupt or unreadable local bytes: the main thread reads again, and knows how to drop and fetch them. A fault of ours that some image
    // brings to light it meets as well, tells, and fails that read: other images' reads go on.
  }
  if (isLocal) {
    writeOutHeader(answer, request, OUT_HEADER_BYTES + lengthBytes, 0);
    stats[STAT.BYTES]! += lengthBytes;
    sendAnswer(device.fd, OUT_HEADER_BYTES + lengthBytes);
    return;
  }
  stats[STAT.MISSES]! += 1;
  const uniqueLow = request.readUInt32LE(8);
  const uniqueHigh = request.readUInt32LE(12);
  const tid = request.readUInt32LE(32);
  post({ type: 'miss', slot, uniqueLow, uniqueHigh, tid, offsetBytes, lengthBytes, ranges: collector.ranges });
}

function serve(slot: number, device: Served, length: number): void {
  const opcode = request.readUInt32LE(4);
  switch (opcode) {
    case OPCODE.READ:
      serveRead(slot, device);
      return;
    case OPCODE.GETATTR:
      sendAnswer(device.fd, writeAttributes(answer, request, device.file.sizeBytes));
      return;
    case OPCODE.OPEN:
      sendAnswer(device.fd, writeOpen(answer, request));
      return;
    case OPCODE.STATFS:
      sendAnswer(device.fd, writeStatfs(answer, request, device.file.sizeBytes));
      return;
    case OPCODE.INIT: {
      const { bytes, canResend } = writeInit(answer, request, readInit(request, length), start.maxBackground);
      sendAnswer(device.fd, bytes);
      if (!canResend) post({ type: 'cannotResend', slot });
      return;
    }
    case OPCODE.RELEASE:
    case OPCODE.FLUSH:
    case OPCODE.DESTROY:
      answerError(device.fd, 0);
      return;
    case OPCODE.INTERRUPT:
      post({
        type: 'interrupt',
        slot,
        uniqueLow: request.readUInt32LE(IN_HEADER_BYTES),
        uniqueHigh: request.readUInt32LE(IN_HEADER_BYTES + 4),
      });
      return;
    case OPCODE.FORGET:
    case OPCODE.BATCH_FORGET:
      return;
    default:
      // ENOSYS makes the kernel stop asking (xattrs, ioctl, lseek); the file system above needs none of them.
      answerError(device.fd, ERRNO.ENOSYS);
  }
}

/** Takes up to BURST requests of one device. */
function drain(slot: number, device: Served): void {
  for (let i = 0; i < BURST; i += 1) {
    const length = libc.read(device.fd, request, REQUEST_BUFFER_BYTES);
    if (length < IN_HEADER_BYTES) {
      const errno = length < 0 ? lastErrno() : 0;
      if (errno === ERRNO.EAGAIN) return;
      // ENOENT: the request was taken back between wake-up and read. There may be others, and no further edge tells of them.
      if (errno === ERRNO.ENOENT || errno === ERRNO.EINTR) continue;
      // Anything but the connection's end (ENOMEM, say) passes: try again.
      if (errno !== ERRNO.ENODEV && errno !== ERRNO.ECONNABORTED) break;
      removeFromEpoll(start.epollFd, device.fd);
      devices.delete(slot);
      post({ type: 'gone', slot });
      return;
    }
    stats[STAT.REQUESTS]! += 1;
    stats[STAT.BEATS]! += 1;
    serve(slot, device, length);
  }
  rearm(start.epollFd, device.fd, slot);
}

stats[STAT.TID] = libc.gettid();
while (Atomics.load(control, CONTROL.STOP) === 0) {
  stats[STAT.BEATS]! += 1;
  const slot = waiter.wait(WAIT_MS);
  if (mailSeen !== Atomics.load(control, CONTROL.MAIL)) readMail();
  if (slot === undefined) continue;
  const device = devices.get(slot);
  if (device !== undefined) drain(slot, device);
}
port.close();

/**
 * A worker of the `connections` bench: answers reads with zeros, either blocking on one shared connection or polling a set of many.
 * What stands around the requests is the same, so the difference is the cost of waiting on many connections.
 */
import fs from 'node:fs';
import { workerData } from 'node:worker_threads';
import {
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
} from '../../plugin/fuse/protocol.ts';
import { EpollWaiter } from '../../plugin/kernel/epoll.ts';
import { libc } from '../../plugin/kernel/libc.ts';

export interface BenchWorkerData {
  mode: 'shared' | 'separate';
  epollFd: number;
  fds: number[];
  sizeBytes: number;
}

const { mode, epollFd, fds, sizeBytes } = workerData as BenchWorkerData;
const request = Buffer.alloc(REQUEST_BUFFER_BYTES);
const answer = Buffer.alloc(OUT_HEADER_BYTES + MAX_READ_BYTES);

function answerOf(length: number): number {
  switch (request.readUInt32LE(4)) {
    case OPCODE.READ: {
      const bytes = OUT_HEADER_BYTES + request.readUInt32LE(56);
      writeOutHeader(answer, request, bytes, 0);
      return bytes;
    }
    case OPCODE.GETATTR:
      return writeAttributes(answer, request, sizeBytes);
    case OPCODE.OPEN:
      return writeOpen(answer, request);
    case OPCODE.STATFS:
      return writeStatfs(answer, request, sizeBytes);
    case OPCODE.INIT:
      return writeInit(answer, request, readInit(request, length), 256).bytes;
    case OPCODE.FORGET:
    case OPCODE.BATCH_FORGET:
    case OPCODE.INTERRUPT:
      return 0;
    default:
      writeOutHeader(answer, request, OUT_HEADER_BYTES, request.readUInt32LE(4) === OPCODE.RELEASE ? 0 : 38);
      return OUT_HEADER_BYTES;
  }
}

if (mode === 'shared') {
  const fd = fds[0]!;
  for (;;) {
    const length = fs.readSync(fd, request, 0, REQUEST_BUFFER_BYTES, null);
    const bytes = answerOf(length);
    if (bytes > 0) fs.writeSync(fd, answer, 0, bytes);
  }
} else {
  const waiter = new EpollWaiter(epollFd);
  for (;;) {
    const tag = waiter.wait(-1);
    if (tag === undefined) continue;
    const fd = fds[tag]!;
    for (;;) {
      const length = libc.read(fd, request, REQUEST_BUFFER_BYTES);
      if (length <= 0) break;
      const bytes = answerOf(length);
      if (bytes > 0) libc.write(fd, answer.subarray(0, bytes), bytes);
    }
  }
}

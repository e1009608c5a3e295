/**
 * B6: reads through the mounted device, all data local and in memory (a tmpfs): a plain file on a loop device, a C server on libfuse, and ours
 * over the same bytes; CPU of the server per request. Then cold walks of a tree: ours against ext4 and EROFS on loop devices.
 */
import fs from 'node:fs';
import { MIB, roundUp } from '../../../plugin/base/units.ts';
import { attachLoop } from '../../../plugin/kernel/loop.ts';
import { detachMounts, mount } from '../../../plugin/kernel/mount.ts';
import { debianImage } from '../../support/debian-image.ts';
import { run } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import type { BenchCase } from '../harness/bench-case.ts';
import { startBindfs } from '../harness/bindfs.ts';
import { convertedImage } from '../harness/converted.ts';
import { layerOfRaw } from '../harness/layer-files.ts';
import { cpuSeconds, dropCaches, type FioRead, fio, mb, median, timed } from '../harness/measure.ts';
import { localLayers, Product } from '../harness/product.ts';
import type { CaseResult, Table } from '../harness/report.ts';

const RUNTIME_S = 4;
const JOBS: readonly [string, readonly string[]][] = [
  ['sequential 1 MiB', ['--rw=read', '--bs=1m', '--iodepth=4']],
  ['random 4 KiB, depth 1', ['--rw=randread', '--bs=4k', '--iodepth=1']],
  ['random 4 KiB, depth 32', ['--rw=randread', '--bs=4k', '--iodepth=32']],
];

interface Sample extends FioRead {
  job: string;
  reader: string;
  /** CPU of the serving process per 100,000 reads; undefined where the kernel serves. */
  cpuSPer100k: number | undefined;
}

interface Walk {
  tree: string;
  namesMs: number;
  bytesMs: number;
}

/** The bytes that the file system takes, rounded up to 1 MiB: the device itself is larger, and reads as zeros there. */
function erofsBytes(devicePath: string): number {
  const block = Buffer.alloc(4096);
  const fd = fs.openSync(devicePath, 'r');
  fs.readSync(fd, block, 0, block.length, 0);
  fs.closeSync(fd);
  // struct erofs_super_block at 1024: blkszbits u8 at 12, blocks u32 at 36.
  return roundUp(block.readUInt32LE(1024 + 36) * 2 ** block.readUInt8(1024 + 12), MIB);
}

async function oneJob(
  job: string,
  args: readonly string[],
  reader: string,
  file: string,
  sizeBytes: number,
  serverCpu: (() => number) | undefined,
): Promise<Sample> {
  const before = serverCpu?.() ?? 0;
  const limits = [`--size=${sizeBytes}`, `--runtime=${RUNTIME_S}`, '--time_based'];
  const read = await fio(file, ['--direct=1', '--ioengine=libaio', ...limits, ...args]);
  const cpuSPer100k = serverCpu === undefined ? undefined : ((serverCpu() - before) / read.count) * 100_000;
  return { job, reader, ...read, cpuSPer100k };
}

async function walk(tree: string, directory: string): Promise<Walk> {
  dropCaches();
  const namesMs = await timed(() => run('find', [directory, '-xdev', '-printf', '%s %p\n']));
  dropCaches();
  const bytesMs = await timed(() => run('bash', ['-c', 'tar --create --file=- --directory="$1" . | cat >/dev/null', 'bash', directory]));
  return { tree, namesMs, bytesMs };
}

/** Mounts a file-system image on a loop device, walks it, and takes it away. */
async function walkLoop(tree: string, imagePath: string, fsType: string, target: string): Promise<Walk> {
  const loop = attachLoop(imagePath);
  try {
    mount({ source: loop.path, target, fsType, flags: 1, options: fsType === 'ext4' ? 'noload' : '' });
  } finally {
    fs.closeSync(loop.fd);
  }
  try {
    return await walk(tree, target);
  } finally {
    detachMounts(target);
  }
}

function readsTable(samples: readonly Sample[]): Table {
  const rows: (string | number)[][] = [];
  for (const [job] of JOBS) {
    const of = (reader: string): Sample[] => samples.filter((sample) => sample.job === job && sample.reader === reader);
    const libfuse = median(of('C libfuse (bindfs)').map((sample) => sample.iops));
    for (const reader of new Set(samples.map((sample) => sample.reader))) {
      const mine = of(reader);
      const iops = median(mine.map((sample) => sample.iops));
      const cpu = mine.flatMap((sample) => sample.cpuSPer100k ?? []);
      rows.push([
        `${job}: ${reader}`,
        Math.round(iops),
        mb(median(mine.map((sample) => sample.bytesPerS))),
        median(mine.map((sample) => sample.medianUs)).toFixed(0),
        median(mine.map((sample) => sample.p99Us)).toFixed(0),
        cpu.length === 0 ? '–' : median(cpu).toFixed(2),
        (iops / libfuse).toFixed(2),
      ]);
    }
  }
  return { title: 'Reads', columns: ['', 'reads/s', 'MB/s', 'median µs', 'P99 µs', 'server CPU s per 100,000', '× libfuse'], rows };
}

function walksTable(walks: readonly Walk[]): Table {
  const figures = (tree: string): [number, number] => {
    const mine = walks.filter((walked) => walked.tree === tree);
    return [median(mine.map((walked) => walked.namesMs)), median(mine.map((walked) => walked.bytesMs))];
  };
  const [names, bytes] = figures('ext4 on a loop device');
  const rows = [...new Set(walks.map((walked) => walked.tree))].map((tree) => {
    const [namesMs, bytesMs] = figures(tree);
    return [tree, namesMs.toFixed(0), (names / namesMs).toFixed(2), bytesMs.toFixed(0), (bytes / bytesMs).toFixed(2)];
  });
  return { title: 'Cold walks of the demo image', columns: ['', 'all names ms', '× ext4', 'all bytes ms', '× ext4'], rows };
}

async function runDevice(rounds: number): Promise<CaseResult> {
  const source = await debianImage();
  const converted = await convertedImage(source);
  await using scratch = await Scratch.create('bench-device');
  const memory = await scratch.dir('memory');
  mount({ source: 'bench', target: memory, fsType: 'tmpfs', flags: 0, options: 'size=8g,mode=700' });
  await using stack = new AsyncDisposableStack();
  stack.defer(() => detachMounts(memory));
  const layers = [];
  for (const [index, layer] of converted.layers.entries()) {
    const blob = `${memory}/layer${index}`;
    fs.copyFileSync(layer.blob as string, blob);
    layers.push({ ...layer, blob });
  }
  const product = stack.use(await Product.start());
  const compressed = await product.attach('compressed', localLayers(layers));
  const raw = `${memory}/plain/raw.img`;
  fs.mkdirSync(`${memory}/plain`);
  const sizeBytes = erofsBytes(compressed.devicePath);
  await run('dd', [`if=${compressed.devicePath}`, `of=${raw}`, 'bs=1M', `count=${sizeBytes / MIB}`, 'status=none']);
  const flat = await product.attach('flat', localLayers([await layerOfRaw(raw, `${memory}/flat`)]));
  const ext4 = `${memory}/ext4.img`;
  await run('mke2fs', ['-q', '-t', 'ext4', '-b', '4096', '-O', '^has_journal', '-d', source.tree, ext4, '2g'], { timeoutMs: 300_000 });
  const bound = await scratch.dir('bound');
  const bindfs = stack.use(await startBindfs(`${memory}/plain`, bound, scratch.join('bindfs.log')));
  const loop = attachLoop(raw);
  stack.defer(() => fs.closeSync(loop.fd));

  const readers: [string, string, (() => number) | undefined][] = [
    ['plain file on a loop device', loop.path, undefined],
    ['C libfuse (bindfs)', `${bound}/raw.img`, () => cpuSeconds(bindfs.pid)],
    ['ours, same bytes uncompressed', flat.devicePath, () => product.blockdCpuSeconds()],
    ['ours, zstd 64 KiB blocks', compressed.devicePath, () => product.blockdCpuSeconds()],
  ];
  const samples: Sample[] = [];
  const walks: Walk[] = [];
  const target = await scratch.dir('mounted');
  for (let round = 0; round < rounds; round += 1) {
    for (const [job, args] of JOBS)
      for (const [reader, file, cpu] of readers) {
        fs.accessSync(file);
        samples.push(await oneJob(job, args, reader, file, sizeBytes, cpu));
      }
    walks.push(await walkLoop('ext4 on a loop device', ext4, 'ext4', target));
    walks.push(await walkLoop('EROFS on a loop device', raw, 'erofs', target));
    for (const [tree, device] of [['ours, uncompressed', flat] as const, ['ours, zstd 64 KiB blocks', compressed] as const]) {
      await product.mount(device, target);
      walks.push(await walk(tree, target));
      await product.unmount(target);
    }
  }
  for (const id of ['compressed', 'flat']) await product.detach(id);
  const notes = [
    `medians of ${rounds} rounds; fio, O_DIRECT, libaio, ${RUNTIME_S} s a job; all bytes lie in a tmpfs`,
    'the C server is bindfs 1.14 of Debian 12 (libfuse 2.9, multi-threaded): it passes reads on to the same bytes as a file; O_DIRECT ends at it as it ends at ours',
    'zstd: each read of 4 KiB at a random place decodes a block of 64 KiB; a container reads through the page cache and decodes each block about once',
  ];
  return { tables: [readsTable(samples), walksTable(walks)], notes, samples: { reads: samples, walks } };
}

export const device: BenchCase = { name: 'device', title: 'B6 device: reads of local data', rounds: 3, run: runDevice };

/** The builder's core over a device in memory: no threads, no files, so that thousands of images fit a few seconds. */

import { hash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { FileBlocks } from '../../../../plugin/convert/build/file-blocks.ts';
import { EntryRecorder } from '../../../../plugin/convert/build/index/entry-recorder.ts';
import { IndexContent } from '../../../../plugin/convert/build/index/index-content.ts';
import type { TarRecord } from '../../../../plugin/convert/build/index/tar-records.ts';
import type { ContentSink } from '../../../../plugin/convert/build/layer-applier.ts';
import { LayerApplier } from '../../../../plugin/convert/build/layer-applier.ts';
import { Spool } from '../../../../plugin/convert/build/spool.ts';
import { DeviceSpace } from '../../../../plugin/image/erofs/device-space.ts';
import { decodeDevice, MODE_TYPE, S_IFMT } from '../../../../plugin/image/erofs/format.ts';
import { writeLayer } from '../../../../plugin/image/erofs/layer-writer.ts';
import { ErofsReader } from '../../../../plugin/image/erofs/reader.ts';
import { restoreTree } from '../../../../plugin/image/erofs/restore-tree.ts';
import { FileTree } from '../../../../plugin/image/erofs/tree.ts';
import { decodeXattrs } from '../../../../plugin/image/erofs/xattrs.ts';
import { TarReader } from '../../../../plugin/image/tar/reader.ts';
import type { ListedObject } from './model.ts';

const BLOCK = 4096;
const SECTOR = 512;

export class MemoryBuilder {
  readonly blocks = new Map<number, Buffer>();
  /** Blocks that each layer wrote. */
  readonly writtenBlocks: number[] = [];
  private tree = new FileTree();
  private space = new DeviceSpace();
  private count = 0;

  readonly read = (offset: number, length: number): Buffer => {
    const target = Buffer.alloc(length);
    for (let done = 0; done < length; ) {
      const at = offset + done;
      const take = Math.min(length - done, BLOCK - (at % BLOCK));
      this.blocks.get(Math.floor(at / BLOCK))?.copy(target, done, at % BLOCK, (at % BLOCK) + take);
      done += take;
    }
    return target;
  };

  get deviceBytes(): number {
    return this.space.endBytes;
  }

  /** Forgets the model and reads it back from the device. */
  restore(): void {
    const restored = restoreTree(this.read);
    this.tree = restored.tree;
    this.space = restored.space;
    this.count = 0;
  }

  /** The layer in index-only mode: content is mapped into the tar, sector by sector, unless it is stored. */
  addIndexLayer(tar: Buffer, inlineLimitBytes: number, chunkBytes = tar.length): void {
    const records: TarRecord[] = [];
    const recorder = new EntryRecorder(inlineLimitBytes, (record) => records.push(record));
    const reader = new TarReader(recorder);
    for (let at = 0; at < tar.length; at += chunkBytes) reader.push(tar.subarray(at, at + chunkBytes));
    reader.end();
    recorder.close();
    this.count += 1;
    this.tree.beginLayer(this.count);
    const start = this.space.endBytes;
    const directory = mkdtempSync(path.join(tmpdir(), 'obd-index-'));
    const spool = new Spool(path.join(directory, 'spool'));
    using cleanup = new DisposableStack();
    cleanup.defer(() => rmSync(directory, { recursive: true }));
    cleanup.use(spool);
    const content = new IndexContent(spool, inlineLimitBytes);
    const applier = new LayerApplier(this.tree, this.space, content);
    for (const record of records) {
      if (record === null) applier.entryEnd();
      else if ('bytes' in record) applier.content(Buffer.from(record.bytes), record.fileOffset);
      else applier.entry(record);
    }
    let end = start;
    const place = (lba: number, bytes: Uint8Array): void => {
      const offset = lba * SECTOR;
      if (offset < end) throw new Error(`content at ${offset} comes after ${end}`);
      end = offset + bytes.length;
      for (let at = 0; at < bytes.length; at += SECTOR) {
        const number = Math.floor((offset + at) / BLOCK);
        const block = this.blocks.get(number) ?? Buffer.alloc(BLOCK);
        block.set(bytes.subarray(at, at + SECTOR), (offset + at) % BLOCK);
        this.blocks.set(number, block);
      }
    };
    let stored = 0;
    const mapped = content.emit({
      addData: (lba) => {
        stored = lba;
      },
      addRemote: (lba, sectors, target) => place(lba, tar.subarray(target * SECTOR, (target + sectors) * SECTOR)),
    });
    for (const bytes of mapped) place(stored, bytes);
    this.writeMetadata((position, length) => spool.read(position, length), 0);
  }

  addLayer(tar: Buffer, inlineLimitBytes: number, chunkBytes = tar.length): void {
    this.count += 1;
    this.tree.beginLayer(this.count);
    const start = this.space.endBytes;
    const spooled: Buffer[] = [];
    let written = 0;
    const store = (offset: number, bytes: Uint8Array): void => {
      written += this.store(offset, bytes);
    };
    const append = (offset: number, bytes: Uint8Array): void => {
      if (offset < start) throw new Error(`content at ${offset} lies in a lower layer, which ends at ${start}`);
      if (this.blocks.has(offset / BLOCK)) throw new Error(`content at ${offset} was written twice`);
      store(offset, bytes);
    };
    const files = new FileBlocks({ append });
    const sink: ContentSink = {
      inlineLimitBytes,
      spool: (bytes) => spooled.push(Buffer.from(bytes)) - 1,
      begin: (_, offset) => files.begin(offset),
      write: (bytes, offset) => files.write(bytes, offset),
      end: (size) => files.end(size),
    };
    const reader = new TarReader(new LayerApplier(this.tree, this.space, sink));
    for (let at = 0; at < tar.length; at += chunkBytes) reader.push(tar.subarray(at, at + chunkBytes));
    reader.end();
    this.writeMetadata((position, length) => spooled[position]!.subarray(0, length), written);
  }

  private writeMetadata(readSpool: (position: number, length: number) => Buffer, contentBlocks: number): void {
    let written = contentBlocks;
    let last = -1;
    for (const extent of writeLayer({
      tree: this.tree,
      space: this.space,
      read: this.read,
      readSpool,
      uuid: Buffer.alloc(16, this.writtenBlocks.length),
    })) {
      if (extent.offsetBytes <= last) throw new Error('metadata is not written in ascending order');
      last = extent.offsetBytes;
      written += this.store(extent.offsetBytes, extent.bytes);
    }
    this.tree.endLayer();
    this.writtenBlocks.push(written);
  }

  /** Returns how many blocks it is. */
  private store(offset: number, bytes: Uint8Array): number {
    for (let at = 0; at < bytes.length; at += BLOCK) this.blocks.set((offset + at) / BLOCK, Buffer.from(bytes.subarray(at, at + BLOCK)));
    return Math.ceil(bytes.length / BLOCK);
  }

  /** What the device says, read with nothing but its bytes. */
  list(): Map<string, ListedObject> {
    const reader = new ErofsReader(this.read);
    const listed = new Map<string, ListedObject>();
    const first = new Map<number, string>();
    const visit = (nid: number, path: string, parent: number): void => {
      const inode = reader.inode(nid);
      const type = typeName(inode.mode);
      if (!first.has(nid)) first.set(nid, path);
      const xattrs: Record<string, string> = {};
      for (const [name, value] of decodeXattrs(reader.xattrBytes(inode), path)) xattrs[name] = Buffer.from(value).toString('latin1');
      const content = type === 'file' || type === 'symlink' ? reader.content(inode, 0, inode.sizeBytes) : Buffer.alloc(0);
      const device = decodeDevice(inode.union);
      listed.set(path, {
        type,
        mode: inode.mode & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtimeSeconds,
        nanoseconds: inode.mtimeNanoseconds,
        xattrs,
        links: inode.linkCount,
        value: type === 'file' ? hash('sha1', content) : type === 'char' ? `${device.major}:${device.minor}` : content.toString('latin1'),
        sameAs: first.get(nid)!,
      });
      if (type === 'file' && inode.layout === 0 && inode.sizeBytes % BLOCK > 0) {
        const end = inode.union * BLOCK + inode.sizeBytes;
        if (this.read(end, BLOCK - (end % BLOCK)).some((byte) => byte !== 0))
          throw new Error(`bytes after the end of ${path} are not zero`);
      }
      if (type !== 'directory') return;
      let previous = '';
      for (const entry of reader.directory(inode)) {
        if (entry.name <= previous) throw new Error(`${path}: ${entry.name} does not sort after ${previous}`);
        previous = entry.name;
        if (entry.name === '.' && entry.nid !== nid) throw new Error(`${path}: "." names ${entry.nid}, not ${nid}`);
        if (entry.name === '..' && entry.nid !== parent) throw new Error(`${path}: ".." names ${entry.nid}, not ${parent}`);
        if (entry.name !== '.' && entry.name !== '..') visit(entry.nid, `${path}/${entry.name}`, nid);
      }
    };
    visit(36, '', 36);
    return listed;
  }
}

function typeName(mode: number): string {
  const type = mode & S_IFMT;
  return Object.entries(MODE_TYPE).find(([, value]) => value === type)?.[0] ?? `mode ${mode}`;
}

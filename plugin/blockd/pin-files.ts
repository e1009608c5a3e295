/**
 * What is pinned, on disk: one JSON file an owner (`pins/<owner>.json`), written before the pin counts and kept until the last byte of a
 * released owner is gone. Ours.
 */
import fs from 'node:fs/promises';
import path from 'node:path';
import { z } from 'zod';
import { AppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { blobSourceSchema } from '../file/device-spec.ts';
import { removeDurably, writeDurably } from '../file/durable-file.ts';

/** An image of the most layers that the format knows, each with its original; and as much again. */
export const MAX_PINNED_BLOBS = 4 * 255;

/** Who pins: an image of a cache, or the making of one. */
export const ownerSchema = z.string().regex(/^[a-z0-9][a-z0-9.-]{0,127}$/, 'is not 1 to 128 of a-z 0-9 . -');

const pinFileSchema = z.object({
  version: z.literal(1),
  owner: ownerSchema,
  /** The owner wants nothing any more; the blobs go when their last users do. */
  isReleased: z.boolean(),
  blobs: z.array(blobSourceSchema).max(MAX_PINNED_BLOBS),
});
export type PinFile = z.infer<typeof pinFileSchema>;

const FILE_NAME = /^(.+)\.json$/;

export class PinFiles {
  private readonly directory: string;
  private readonly log: Logger;

  constructor(directory: string, log: Logger) {
    this.directory = directory;
    this.log = log;
  }

  /** Every owner's file; makes the directory. A damaged one is logged and left alone: its blobs are not pinned, and nothing is deleted for it. */
  async load(): Promise<PinFile[]> {
    await fs.mkdir(this.directory, { recursive: true, mode: 0o700 });
    const found: PinFile[] = [];
    for (const name of (await fs.readdir(this.directory)).sort()) {
      const owner = FILE_NAME.exec(name)?.[1];
      if (owner === undefined) continue;
      try {
        const file = pinFileSchema.parse(JSON.parse(await fs.readFile(path.join(this.directory, name), 'utf8')));
        if (file.owner !== owner) throw new AppError('DataLoss', { op: 'read pins', subject: name, what: `it names ${file.owner}` });
        found.push(file);
      } catch (err) {
        this.log.error({ err, file: name }, 'a list of pinned blobs cannot be read; they are not pinned until their owner asks again');
      }
    }
    return found;
  }

  /** Durable when it resolves. */
  write(file: Omit<PinFile, 'version'>): Promise<void> {
    return writeDurably(this.pathOf(file.owner), JSON.stringify({ version: 1, ...file }));
  }

  remove(owner: string): Promise<void> {
    return removeDurably(this.pathOf(owner));
  }

  private pathOf(owner: string): string {
    return path.join(this.directory, `${owner}.json`);
  }
}

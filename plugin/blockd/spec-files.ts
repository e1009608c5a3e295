/**
 * The devices on disk: `devices/<instance>.json`, one file a connection. Written before the connection exists and removed after the
 * kernel has released it, so that a restarted data plane finds everything it serves without asking anyone.
 */
import fs from 'node:fs/promises';
import path from 'node:path';
import { AppError, describeError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { type DeviceSpec, deviceSpecSchema } from '../file/device-spec.ts';
import { removeDurably, writeDurably } from '../file/durable-file.ts';

/** 255 layers of three blobs with sixteen repositories each stay far below. */
const MAX_SPEC_BYTES = 4 * 1024 * 1024;

/** One attachment of a device. A device that the kernel still holds while it is attached anew has two, with names of their own. */
export interface StoredDevice {
  instance: string;
  spec: DeviceSpec;
  /** Names this one connection, also after restarts of the data plane. */
  connection: string;
}

/** Checks a spec from outside. Throws InvalidArgument naming the field. */
export function parseDeviceSpec(value: unknown, subject: string): DeviceSpec {
  const parsed = deviceSpecSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw new AppError('InvalidArgument', {
    op: 'read device spec',
    subject,
    what: `${issue?.path.join('.') ?? ''}: ${issue?.message ?? 'malformed'}`,
    cause: parsed.error,
  });
}

export class SpecFiles {
  private readonly directory: string;

  constructor(directory: string) {
    this.directory = directory;
  }

  async save(device: StoredDevice): Promise<void> {
    await writeDurably(this.pathOf(device.instance), JSON.stringify({ ...device.spec, connection: device.connection }));
  }

  async remove(instance: string): Promise<void> {
    await removeDurably(this.pathOf(instance));
  }

  /** Every readable device; damaged files are set aside as `.bad`, reported, and stop nothing. */
  async load(log: Logger): Promise<StoredDevice[]> {
    await fs.mkdir(this.directory, { recursive: true, mode: 0o700 });
    const devices: StoredDevice[] = [];
    for (const name of (await fs.readdir(this.directory)).sort()) {
      const filePath = path.join(this.directory, name);
      if (name.endsWith('.tmp')) await fs.rm(filePath, { force: true });
      if (!name.endsWith('.json')) continue;
      try {
        const { size } = await fs.stat(filePath);
        if (size > MAX_SPEC_BYTES)
          throw new AppError('InvalidArgument', { op: 'read', subject: filePath, what: `${size} bytes, limit ${MAX_SPEC_BYTES}` });
        const content = JSON.parse(await fs.readFile(filePath, 'utf8')) as { connection?: unknown } | null;
        const spec = parseDeviceSpec(content, filePath);
        const connection = typeof content?.connection === 'string' ? content.connection : '';
        devices.push({ instance: name.slice(0, -'.json'.length), spec, connection });
      } catch (error) {
        log.error({ file: filePath, reason: describeError(error) }, 'device file is damaged; set aside as .bad');
        await fs.rename(filePath, `${filePath}.bad`);
      }
    }
    return devices;
  }

  private pathOf(instance: string): string {
    return path.join(this.directory, `${instance}.json`);
  }
}

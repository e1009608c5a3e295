/**
 * Sealing of secrets on disk: AES-256-GCM under a key file that only root reads. Ours.
 *
 *   magic 8 │ nonce 12 │ tag 16 │ ciphertext        the magic is authenticated too
 */
import { createCipheriv, createDecipheriv, randomBytes, randomUUID } from 'node:crypto';
import fs from 'node:fs/promises';
import path from 'node:path';
import { syncDirectory, writeDurably } from '../../base/durable-file.ts';
import { AppError, errnoOf } from '../../base/errors.ts';

const MAGIC = Buffer.from('OBDSEAL1', 'ascii');
const NONCE_BYTES = 12;
const TAG_BYTES = 16;
const KEY_BYTES = 32;

/** Encrypts; every result is different. */
export function seal(key: Uint8Array, plain: Uint8Array): Buffer {
  const nonce = randomBytes(NONCE_BYTES);
  const cipher = createCipheriv('aes-256-gcm', key, nonce);
  cipher.setAAD(MAGIC);
  const sealed = Buffer.concat([cipher.update(plain), cipher.final()]);
  return Buffer.concat([MAGIC, nonce, cipher.getAuthTag(), sealed]);
}

/** Decrypts what {@link seal} made. Throws DataLoss (another key, or changed bytes) that names `subject`. */
export function unseal(key: Uint8Array, bytes: Uint8Array, subject: string): Buffer {
  const start = MAGIC.length + NONCE_BYTES + TAG_BYTES;
  const sealed = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  const refuse = (what: string): AppError => new AppError('DataLoss', { op: 'unseal', subject, what });
  if (sealed.length < start || !sealed.subarray(0, MAGIC.length).equals(MAGIC)) throw refuse('is no sealed file');
  const decipher = createDecipheriv('aes-256-gcm', key, sealed.subarray(MAGIC.length, MAGIC.length + NONCE_BYTES));
  decipher.setAAD(MAGIC);
  decipher.setAuthTag(sealed.subarray(MAGIC.length + NONCE_BYTES, start));
  try {
    return Buffer.concat([decipher.update(sealed.subarray(start)), decipher.final()]);
  } catch {
    // The library's error says nothing more.
    throw refuse('was sealed with another key, or is damaged');
  }
}

/** Reads the key. Undefined when there is none. Throws FailedPrecondition for a file that others can read, or of another size. */
export async function readKey(file: string): Promise<Uint8Array | undefined> {
  const refuse = (what: string, cause?: unknown): AppError =>
    new AppError('FailedPrecondition', { op: 'read key', subject: file, what, ...(cause === undefined ? {} : { cause }) });
  let handle: fs.FileHandle;
  try {
    handle = await fs.open(file, 'r');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw refuse(`cannot be read (${errnoOf(error) ?? 'unknown'})`, error);
  }
  try {
    const info = await handle.stat();
    if ((info.mode & 0o077) !== 0) throw refuse('others than its owner may read it; chmod it to 0600');
    if (info.uid !== process.getuid?.()) throw refuse(`belongs to user ${info.uid}`);
    if (info.size !== KEY_BYTES) throw refuse(`has ${info.size} bytes, not ${KEY_BYTES}`);
    return await handle.readFile();
  } finally {
    await handle.close();
  }
}

/** Reads the key, and makes one if there is none. Errors as {@link readKey}. */
export async function readOrMakeKey(file: string): Promise<Uint8Array> {
  const known = await readKey(file);
  if (known !== undefined) return known;
  await fs.mkdir(path.dirname(file), { recursive: true, mode: 0o700 });
  const temporary = `${file}.${randomUUID()}`;
  await writeDurably(temporary, randomBytes(KEY_BYTES));
  try {
    // A link never replaces: whoever was first has made the key.
    await fs.link(temporary, file);
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw error;
  } finally {
    await fs.unlink(temporary);
  }
  // Before anything is sealed with it: a vault must not outlive its key in a power cut.
  await syncDirectory(path.dirname(file));
  return (await readKey(file))!;
}

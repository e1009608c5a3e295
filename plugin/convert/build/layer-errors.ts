/** Errors of converting one layer. Ours. */
import type { Digest } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { printableBytes } from '../../image/tar/errors.ts';
import type { SourceLayer } from './options.ts';

/** Throws DataLoss when a layer's bytes are not those that its descriptor and its image's configuration name. */
export function checkDigests(layer: SourceLayer, found: { digest: Digest; diffId: Digest }): void {
  if (layer.digest !== undefined && layer.digest !== found.digest) throw mismatch(layer.name, 'digest', found.digest, layer.digest);
  if (layer.diffId !== undefined && layer.diffId !== found.diffId) throw mismatch(layer.name, 'diffID', found.diffId, layer.diffId);
}

function mismatch(subject: string, what: string, found: string, expected: string): AppError {
  return new AppError('DataLoss', { op: 'convert', subject, what: `${what} is ${found}, expected ${expected}` });
}

/** Names the layer in an error of the tar reader or of the format, which know only entries. */
export function inLayer(error: unknown, name: string): unknown {
  if (!(error instanceof AppError) || error.subject === name) return error;
  const { code, details } = error;
  return new AppError(code, { op: 'convert', subject: name, what: error.message, details: { ...details, layer: name }, cause: error });
}

/** Names the entry in which the bytes of a layer ended or were damaged; the tar reader names it in its own errors. */
export function inEntry(error: unknown, entryName: string | undefined): unknown {
  if (entryName === undefined || !(error instanceof AppError) || error.code !== 'DataLoss' || error.op !== 'decompress') return error;
  const { code, op, subject, details } = error;
  const what = `${error.message.slice(`${op} ${subject}: `.length)} (in the entry ${printableBytes(entryName)})`;
  return new AppError(code, { op, subject, what, details, cause: error.cause });
}

/** What the applier counted as left out amounts to, for people. */
export function warningsOf(skippedXattrs: ReadonlyMap<string, number>): string[] {
  return [...skippedXattrs].map(([name, count]) => `extended attribute ${name} was left out of ${count} entries`);
}

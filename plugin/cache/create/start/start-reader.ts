/**
 * The process that reads what a start needs of one image, through its mount: a read may wait for the network, and a stuck one is ended with
 * its process.
 *
 * Usage: start-reader PARENT_PID IMAGE (the second for people who look at processes)
 */
import { describeError } from '../../../base/errors.ts';
import { dieWithParent } from '../../../kernel/process.ts';
import { ImageTree } from './image-tree.ts';
import { readStart } from './start-files.ts';
import type { FromStartReader, ToStartReader } from './start-process.ts';

const MAX_WHAT_CHARS = 2000;

function answerOf({ work }: ToStartReader): FromStartReader {
  try {
    const { names, ...read } = readStart(new ImageTree(work.roots), work.process);
    return { op: 'done', read: { ...read, files: names.length } };
  } catch (error) {
    return { op: 'failed', what: describeError(error).slice(0, MAX_WHAT_CHARS) };
  }
}

function main(): void {
  if (!dieWithParent(Number(process.argv[2]))) process.exit(1);
  process.once('disconnect', () => process.exit(1));
  process.once('message', (message: ToStartReader) => {
    process.send?.(answerOf(message), undefined, undefined, (error) => process.exit(error === null ? 0 : 1));
  });
}

main();

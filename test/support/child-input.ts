/** Standard input of commands, most of which do not read it. Ours. */
import type { Writable } from 'node:stream';
import { errnoOf } from '../../plugin/base/errors.ts';

/** Writes all there is to read. A command that ends without reading closes the pipe; its exit code says whether that was right. */
export function endInput(stdin: Writable, input: string | Buffer): void {
  stdin.on('error', (error) => {
    if (errnoOf(error) !== 'EPIPE') throw error;
  });
  stdin.end(input);
}

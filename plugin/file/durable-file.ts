/** Small files that must be whole after a power cut; see base. */
export { removeDurably, writeDurably } from '../base/durable-file.ts';

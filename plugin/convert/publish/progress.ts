/** How far a conversion is, counted where the bytes pass. Ours. */
import { z } from 'zod';

const count = z.int().min(0);

export const progressSchema = z.strictObject({
  /** Images of an index, or 1. */
  imagesTotal: count,
  imagesDone: count,
  layersTotal: count,
  /** Converted and in the registry, or found there. */
  layersDone: count,
  /** Of these, layers that were there already. */
  layersReused: count,
  /** Of the source layers that are read; known once the manifests are. */
  sourceBytes: count,
  readBytes: count,
  /** Of converted layers. */
  convertedBytes: count,
  /** Sent to the registry; less when it had layers already. */
  uploadedBytes: count,
});
export type Progress = z.infer<typeof progressSchema>;

export const NO_PROGRESS: Progress = {
  imagesTotal: 0,
  imagesDone: 0,
  layersTotal: 0,
  layersDone: 0,
  layersReused: 0,
  sourceBytes: 0,
  readBytes: 0,
  convertedBytes: 0,
  uploadedBytes: 0,
};

/** Adds up and tells of each change; telling must be quick. */
export class ProgressCounter {
  private values: Progress = { ...NO_PROGRESS };
  private readonly tell: (progress: Progress) => void;

  constructor(tell: (progress: Progress) => void) {
    this.tell = tell;
  }

  get current(): Progress {
    return this.values;
  }

  add(change: Partial<Progress>): void {
    const next = { ...this.values };
    for (const [key, value] of Object.entries(change) as [keyof Progress, number][]) next[key] += value;
    this.values = next;
    this.tell(next);
  }
}

/**
 * A property for a time, not a count. fast-check's own limit leaves an asynchronous run in the middle, whose clean-up then meets that of
 * the test, and shows too little on a machine that is busy. Ours.
 */
import fc from 'fast-check';

export interface ForTimeOptions<T> {
  /** Whether enough was seen; until then it goes on beyond its time. Default: always. */
  isEnough?: () => boolean;
  /** fast-check's. */
  parameters?: Omit<fc.Parameters<T>, 'numRuns'>;
}

/** Runs the property until `timeMs` are over and enough was seen. Fails as `fc.assert` does. */
export async function forTime<T>(
  timeMs: number,
  property: fc.IAsyncProperty<T> | fc.IProperty<T>,
  { isEnough = () => true, parameters = {} }: ForTimeOptions<T> = {},
): Promise<void> {
  if (isAsync(property)) return inBatches(timeMs, property, isEnough, parameters);
  do fc.assert(property, { ...parameters, numRuns: 1_000_000, interruptAfterTimeLimit: timeMs });
  while (!isEnough());
}

function isAsync<T>(property: fc.IAsyncProperty<T> | fc.IProperty<T>): property is fc.IAsyncProperty<T> {
  return property.isAsync();
}

/** Batches with a seed each, since a run cannot be left. */
async function inBatches<T>(
  timeMs: number,
  property: fc.IAsyncProperty<T>,
  isEnough: () => boolean,
  parameters: fc.Parameters<T>,
): Promise<void> {
  let leftMs = timeMs;
  for (let numRuns = 1; numRuns > 0; ) {
    const beginMs = performance.now();
    await fc.assert(property, { ...parameters, numRuns });
    const passedMs = performance.now() - beginMs;
    leftMs -= passedMs;
    // Later runs of a batch are larger: half of what the rest seems to allow, and no more than twice as many as before.
    numRuns = leftMs <= 0 ? Number(!isEnough()) : Math.ceil(Math.min(2 * numRuns, (numRuns * leftMs) / passedMs / 2));
  }
}

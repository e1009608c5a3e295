/**
 * The builder: layer tars in, registry blobs out, in either mode. Output depends on the input layers, the base, the mode and the
 * compression alone. Ours; see design.md, "Conversion".
 */
import { rm } from 'node:fs/promises';
import { CompressPool } from './compress-pool.ts';
import { FullLayers } from './full-layer.ts';
import { ImageModel } from './image-model.ts';
import { IndexLayers } from './index/index-layer.ts';
import { type ConvertedLayer, type ConvertOptions, DEFAULT_COMPRESSION, DEFAULT_THREADS, type SourceLayer } from './options.ts';

/** Layers that are read but whose blob is not complete yet; each costs its staging file. */
const MAX_UNFINISHED = 2;

/**
 * Converts the layers of one image, bottom to top, and yields each blob when it is complete. Rejects with an AppError that names the
 * layer, and for a tar the entry and offset. Layers are read while the caller asks for the next one (index-only mode reads several at
 * once), so slow work (an upload) belongs into a queue beside the loop. On a failure or an early end no thread, descriptor or helper file
 * is left; blobs already yielded stay in the staging directory.
 */
export async function* convertLayers(
  layers: Iterable<SourceLayer> | AsyncIterable<SourceLayer>,
  options: ConvertOptions,
): AsyncGenerator<ConvertedLayer> {
  const threads = options.threads ?? DEFAULT_THREADS;
  await using cleanup = new AsyncDisposableStack();
  const model = cleanup.use(new ImageModel(options));
  let full: FullLayers | undefined;
  // In index-only mode seldom needed.
  const fullLayers = (): FullLayers =>
    (full ??= new FullLayers(options, cleanup.use(new CompressPool(options.compression ?? DEFAULT_COMPRESSION, threads)), model));
  const builds =
    options.mode === 'index-only'
      ? cleanup.use(new IndexLayers(options, threads, model, fullLayers)).buildAll(layers)
      : buildFull(layers, fullLayers());
  const unfinished: Promise<Outcome>[] = [];
  try {
    for await (const build of builds) {
      unfinished.push(settled(build));
      if (unfinished.length === MAX_UNFINISHED) yield unwrap(await unfinished.shift()!);
    }
    while (unfinished.length > 0) yield unwrap(await unfinished.shift()!);
  } finally {
    // Only after a failure or an early end is there anything left.
    for (const outcome of await Promise.all(unfinished)) {
      if ('layer' in outcome) await rm(outcome.layer.path, { force: true });
    }
  }
}

async function* buildFull(
  layers: Iterable<SourceLayer> | AsyncIterable<SourceLayer>,
  builder: FullLayers,
): AsyncGenerator<{ completion: Promise<ConvertedLayer> }> {
  for await (const layer of layers) yield await builder.build(layer);
}

/** How the completion of a blob ended; kept as a value because it is looked at later, in the order of the layers. */
type Outcome = { layer: ConvertedLayer } | { error: unknown };

function settled(unfinished: { completion: Promise<ConvertedLayer> }): Promise<Outcome> {
  return unfinished.completion.then(
    (layer) => ({ layer }),
    (error: unknown) => ({ error }),
  );
}

function unwrap(outcome: Outcome): ConvertedLayer {
  if ('error' in outcome) throw outcome.error;
  return outcome.layer;
}

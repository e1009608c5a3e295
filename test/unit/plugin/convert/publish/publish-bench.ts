/** A registry in memory with a client, a ledger and a staging directory: what tests of publication share. */
import type { Digest } from '../../../../../plugin/base/digest.ts';
import { ProgressCounter } from '../../../../../plugin/convert/publish/progress.ts';
import type { PublishContext } from '../../../../../plugin/convert/publish/publish-manifest.ts';
import { convertRequestSchema } from '../../../../../plugin/convert/publish/request.ts';
import { type FaultRegistry, type FaultRegistryOptions, startFaultRegistry } from '../../../../support/fault-registry.ts';
import { MemoryLedger } from '../../../../support/memory-ledger.ts';
import type { Image } from '../../../../support/oci-image.ts';
import { testClient } from '../../../../support/registry-client.ts';
import { Scratch } from '../../../../support/scratch.ts';

export const REPOSITORY = 'team/app';

export interface PublishBench extends AsyncDisposable {
  registry: FaultRegistry;
  ledger: MemoryLedger;
  /** Log lines of the last context. */
  lines: string[];
  /** Progress of the last context. */
  counter: () => ProgressCounter['current'];
  context(repository?: string, request?: object, signal?: AbortSignal): PublishContext;
}

/** Dispose it in the end. `request`: what every context asks for beside its own. */
export async function startPublishBench(options: FaultRegistryOptions = {}, request: object = {}): Promise<PublishBench> {
  const stack = new AsyncDisposableStack();
  const registry = await startFaultRegistry(options);
  stack.defer(() => registry.stop());
  const client = testClient();
  stack.defer(() => client.close());
  const scratch = stack.use(await Scratch.create('publish'));
  const ledger = new MemoryLedger();
  const lines: string[] = [];
  let counter = new ProgressCounter(() => {});
  return {
    registry,
    ledger,
    lines,
    counter: () => counter.current,
    context: (repository = REPOSITORY, more = {}, signal = new AbortController().signal) => {
      lines.length = 0;
      counter = new ProgressCounter(() => {});
      return {
        client,
        repository: { host: registry.host, repository },
        request: convertRequestSchema.parse({ ...request, ...more }),
        ledger: ledger.of(repository),
        stagingDirectory: scratch.path,
        threads: 1,
        maxLayerBytes: 1e9,
        signal,
        log: (line) => lines.push(line),
        progress: counter,
      };
    },
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  };
}

export function store(registry: FaultRegistry, image: Image, tag: string | undefined, repository = REPOSITORY): Digest {
  for (const { blob } of image.layers) registry.addBlob(blob as Buffer);
  registry.addBlob(image.config.bytes);
  return registry.api.storeManifest(repository, tag, image.manifest.bytes, image.manifest.mediaType);
}

/** How often layers of an image were read. */
export function reads(registry: FaultRegistry, image: Image): number {
  return registry.log.filter((e) => e.method === 'GET' && image.layers.some((l) => e.url.endsWith(`/blobs/${l.digest}`))).length;
}

// biome-ignore lint/suspicious/noExplicitAny: documents are looked at as JSON
export function manifestOf(registry: FaultRegistry, digest: Digest, repository = REPOSITORY): any {
  return JSON.parse(registry.api.manifests.get(`${repository}@${digest}`)!.bytes.toString());
}

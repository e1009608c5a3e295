/** The load of the survival tests: a host, eight readers over two devices whose bytes are local, and containers that start meanwhile. Ours. */
import { SurvivalHost } from './survival-host.ts';
import { convertedTree, fileSystemOf, imageOfFileSystem, makeTree } from './survival-image.ts';
import { Churn, type NamedReader } from './survival-run.ts';
import type { ReaderSummary } from './verifying-reader.ts';
import { waitFor } from './wait.ts';

/** The containers that start meanwhile read through this. */
const SLOW_LINK = { rateBytesPerS: 2_000_000, roundTripMs: 10 };

const TREE_BYTES = 12 * 1024 * 1024;
const SMALL_TREE_BYTES = 1024 * 1024;

export class SurvivalLoad implements AsyncDisposable {
  readonly host: SurvivalHost;
  readonly readers: readonly NamedReader[];
  /** Containers that come and go; undefined when not wanted. */
  readonly churn: Churn | undefined;
  private readonly stack: AsyncDisposableStack;

  private constructor(
    parts: { host: SurvivalHost; readers: readonly NamedReader[]; churn: Churn | undefined },
    stack: AsyncDisposableStack,
  ) {
    this.host = parts.host;
    this.readers = parts.readers;
    this.churn = parts.churn;
    this.stack = stack;
  }

  /** Starts everything; the readers have been through their trees once, so that what they wait for later is not the registry. */
  static async start(options: { serviceManager?: { watchdogMs?: number }; withChurn?: boolean } = {}): Promise<SurvivalLoad> {
    await using stack = new AsyncDisposableStack();
    const host = stack.use(await SurvivalHost.start({ serviceManager: options.serviceManager ?? {} }));
    const tree = await makeTree(host.scratch.join('tree'), TREE_BYTES);
    const staging = host.scratch.join('staging');
    const images = {
      erofs: await convertedTree(tree, host.scratch.join('converted')),
      ext4: await imageOfFileSystem(await fileSystemOf(tree, 'ext4', staging), staging, 0),
    };
    const readers: NamedReader[] = [];
    for (const kind of ['erofs', 'ext4'] as const) {
      const root = await host.startContainer(await host.push(kind, images[kind]));
      for (const reader of await host.readers(root, tree, { kind, image: images[kind] }))
        readers.push({ device: kind, reader: stack.use(reader) });
    }
    await Promise.all(readers.map(({ reader }) => reader.waitPasses(1)));
    host.proxy.setLink(SLOW_LINK);
    const churn =
      options.withChurn === false ? undefined : await Churn.start(host, await makeTree(host.scratch.join('small'), SMALL_TREE_BYTES));
    return new SurvivalLoad({ host, readers, churn }, stack.move());
  }

  /** Waits for the control plane, so that the containers that start get their turn. */
  async waitControlPlane(): Promise<void> {
    const { sidecar } = this.host;
    await waitFor(() => sidecar.answers(), { what: 'the control plane', timeoutMs: 60_000, details: () => sidecar.logTail() });
  }

  /** Ends the containers, then the readers, and tells what all of them saw. */
  async stop(): Promise<ReaderSummary[]> {
    await this.churn?.stop();
    const summaries = await Promise.all(this.readers.map(({ reader }) => reader.stop()));
    return [...summaries, ...(this.churn?.summaries ?? [])];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stack.disposeAsync();
  }
}

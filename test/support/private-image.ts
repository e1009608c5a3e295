/**
 * A lazy image in a registry that wants credentials, of many files whose bytes do not compress, so that each read of a file asks the registry;
 * and the credential provider that hands the password out. Ours.
 */
import { createHash, randomBytes } from 'node:crypto';
import { chmod, readFile, rename, writeFile } from 'node:fs/promises';
import { convertTars } from './converted-image.ts';
import { type FaultRegistry, startFaultRegistry } from './fault-registry.ts';
import type { Scratch } from './scratch.ts';
import { busyboxLayer } from './small-images.ts';
import { tarOf } from './tar.ts';

const FILE_BYTES = 512 * 1024;
const USER = 'puller';

export class PrivateImage implements AsyncDisposable {
  readonly reference: string;
  /** MD5 of each file, by path in the container. */
  readonly files: ReadonlyMap<string, string>;
  /** Every password that there has been. */
  readonly passwords: string[] = [];
  readonly registry: FaultRegistry;
  private readonly scratch: Scratch;
  private readonly tokenTimer: NodeJS.Timeout;

  private constructor(
    registry: FaultRegistry,
    scratch: Scratch,
    repository: string,
    files: ReadonlyMap<string, string>,
    tokenLifeMs: number,
  ) {
    this.registry = registry;
    this.scratch = scratch;
    this.reference = `${registry.host}/${repository}:1`;
    this.files = files;
    this.tokenTimer = setInterval(() => registry.tokens!.expireTokens(), tokenLifeMs);
  }

  /** Tokens stop working every `tokenLifeMs`. */
  static async start(scratch: Scratch, repository: string, options: { fileCount: number; tokenLifeMs: number }): Promise<PrivateImage> {
    const contents = Array.from({ length: options.fileCount }, () => randomBytes(FILE_BYTES));
    const layer = await busyboxLayer();
    const tars = [scratch.join('private-busybox.tar'), scratch.join('private-data.tar')];
    await writeFile(tars[0]!, layer.blob);
    await writeFile(tars[1]!, await tarOf([{ name: 'data/' }, ...contents.map((content, i) => ({ name: `data/${i}`, content }))]));
    const config = { cmd: ['/bin/sleep', '1000000'] };
    const image = await convertTars(tars, { config, stagingDirectory: scratch.join('private-converted') });
    const auth = { kind: 'bearer', username: USER, password: 'not-yet', lifetimeS: Math.round(options.tokenLifeMs / 1000) } as const;
    const registry = await startFaultRegistry({ auth });
    for (const { blob } of image.layers) registry.addBlob(typeof blob === 'string' ? await readFile(blob) : blob);
    registry.addBlob(image.config.bytes);
    registry.addManifest(repository, image.manifest.bytes, image.manifest.mediaType, '1');
    const files = new Map(contents.map((content, i) => [`/data/${i}`, createHash('md5').update(content).digest('hex')]));
    const made = new PrivateImage(registry, scratch, repository, files, options.tokenLifeMs);
    await made.rotate();
    return made;
  }

  /** The provider's program, which answers what {@link rotate} last wrote. */
  get provider(): string {
    return this.scratch.join('provider');
  }

  /** The registry wants another password from now on, and all tokens are void; the provider learns it. */
  async rotate(): Promise<void> {
    const password = `secret-${randomBytes(12).toString('hex')}`;
    this.passwords.push(password);
    const answer = {
      kind: 'CredentialProviderResponse',
      apiVersion: 'credentialprovider.kubelet.k8s.io/v1',
      cacheKeyType: 'Image',
      cacheDuration: '2s',
      auth: { [this.registry.host]: { username: USER, password } },
    };
    const program = `#!/bin/sh\ncat >/dev/null\ncat <<'END'\n${JSON.stringify(answer)}\nEND\n`;
    await writeFile(`${this.provider}.new`, program);
    await chmod(`${this.provider}.new`, 0o700);
    await rename(`${this.provider}.new`, this.provider);
    this.registry.tokens!.password = password;
    this.registry.tokens!.expireTokens();
  }

  /** All forms in which a secret might be written down. */
  secretTexts(): string[] {
    return this.passwords.flatMap((password) => [password, Buffer.from(`${USER}:${password}`).toString('base64').slice(0, -4)]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.tokenTimer);
    await this.registry[Symbol.asyncDispose]();
  }
}

/** Image caches as `curl -N` shows them: the stream of events of a running product, read by real curl. Ours. */
import { type ChildProcess, spawn } from 'node:child_process';
import type { ShownCache } from './image-caches.ts';
import { waitFor } from './wait.ts';

interface Change {
  kind: 'added' | 'changed' | 'deleted';
  imageCache: ShownCache;
}

export class CacheWatch implements Disposable {
  /** In the order in which they came. */
  readonly changes: Change[] = [];
  private readonly curl: ChildProcess;
  private text = '';
  private complaint = '';

  constructor(adminSocket: string) {
    const args = ['--silent', '--show-error', '--fail', '-N', '--unix-socket', adminSocket, 'http://localhost/v1/image-caches:watch'];
    this.curl = spawn('curl', args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.curl.stdout?.setEncoding('utf8').on('data', (chunk: string) => this.take(chunk));
    this.curl.stderr?.setEncoding('utf8').on('data', (chunk: string) => (this.complaint += chunk));
  }

  /** The first change of a cache that fits; fails when curl has ended before. */
  async until(id: string, what: string, fits: (change: Change) => boolean, timeoutMs = 120_000): Promise<Change> {
    const look = (): Change | undefined => this.changes.find((change) => change.imageCache.imageCacheId === id && fits(change));
    const told = (): string => `${this.complaint}${this.changes.map(({ kind, imageCache }) => `${kind} ${imageCache.status}`).join(', ')}`;
    return waitFor(look, { what: `curl -N to say that ${id} is ${what}`, timeoutMs, details: told });
  }

  ready(id: string): Promise<Change> {
    return this.until(id, 'Ready', ({ imageCache }) => imageCache.status === 'Ready');
  }

  [Symbol.dispose](): void {
    this.curl.kill('SIGKILL');
  }

  private take(chunk: string): void {
    this.text += chunk;
    for (let end = this.text.indexOf('\n\n'); end !== -1; end = this.text.indexOf('\n\n')) {
      const data = /^data: (.*)$/m.exec(this.text.slice(0, end))?.[1];
      this.text = this.text.slice(end + 2);
      if (data !== undefined) this.changes.push(JSON.parse(data) as Change);
    }
  }
}

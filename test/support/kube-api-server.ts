/**
 * etcd and kube-apiserver on loopback, in a scratch directory: the API of a cluster without controllers or scheduler. Users are bearer
 * tokens; rights are RBAC and the node authorizer, as clusters have them. Source: Kubernetes 1.20, kube-apiserver --help.
 */
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { KubeApi, type KubeObject } from './kube-api.ts';
import { kubeBinaries } from './kube-binaries.ts';
import { answersHttp, freePort } from './net.ts';
import { Daemon } from './process.ts';
import { Scratch } from './scratch.ts';

export interface KubeUser {
  name: string;
  groups: readonly string[];
}

const ADMIN: KubeUser = { name: 'test-admin', groups: ['system:masters'] };
const READY_MS = 120_000;

export class KubeApiServer implements AsyncDisposable {
  readonly url: string;
  readonly api: KubeApi;
  private readonly stack: AsyncDisposableStack;
  private readonly scratch: Scratch;
  private readonly ca: string;
  private readonly tokens: ReadonlyMap<string, string>;

  private constructor(stack: AsyncDisposableStack, scratch: Scratch, url: string, ca: string, tokens: ReadonlyMap<string, string>) {
    this.stack = stack;
    this.scratch = scratch;
    this.url = url;
    this.ca = ca;
    this.tokens = tokens;
    this.api = stack.use(new KubeApi({ server: url, ca, token: tokens.get(ADMIN.name)! }));
  }

  /** Starts both and waits until the API server says that it is ready. `users` may be given kubeconfigs. */
  static async start(options: { users?: readonly KubeUser[] } = {}): Promise<KubeApiServer> {
    const { apiServer } = await kubeBinaries();
    await using stack = new AsyncDisposableStack();
    const scratch = stack.use(await Scratch.create('kube'));
    const etcdUrl = await startEtcd(scratch, stack);

    const users = [ADMIN, ...(options.users ?? [])];
    const tokens = new Map(users.map((user) => [user.name, randomBytes(16).toString('hex')]));
    const rows = users.map((user, index) => `${tokens.get(user.name)},${user.name},${index},"${user.groups.join(',')}"`);
    const { privateKey, publicKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const port = await freePort();
    const daemon = await Daemon.start({
      name: 'kube-apiserver',
      command: apiServer,
      args: [
        `--etcd-servers=${etcdUrl}`,
        '--bind-address=127.0.0.1',
        `--secure-port=${port}`,
        `--cert-dir=${await scratch.dir('pki')}`,
        `--token-auth-file=${await scratch.file('tokens.csv', `${rows.join('\n')}\n`)}`,
        '--authorization-mode=Node,RBAC',
        '--enable-admission-plugins=NodeRestriction',
        // Nothing here makes service accounts' tokens, and pods would wait for them.
        '--disable-admission-plugins=ServiceAccount',
        '--service-account-issuer=https://kubernetes.test',
        `--service-account-key-file=${await scratch.file('sa.pub', publicKey.export({ type: 'spki', format: 'pem' }))}`,
        `--service-account-signing-key-file=${await scratch.file('sa.key', privateKey.export({ type: 'pkcs1', format: 'pem' }))}`,
        '--service-cluster-ip-range=10.255.255.0/24',
        '--endpoint-reconciler-type=none',
      ],
      logPath: scratch.join('kube-apiserver.log'),
    });
    stack.use(daemon);
    // The server writes its certificate before it listens.
    const certificate = scratch.join('pki/apiserver.crt');
    await daemon.waitReady(
      'a yes of /readyz',
      async () => {
        const api = new KubeApi({
          server: `https://127.0.0.1:${port}`,
          ca: await readFile(certificate, 'utf8'),
          token: tokens.get(ADMIN.name)!,
        });
        await using _ = api;
        await api.call('GET', '/readyz');
        return true;
      },
      READY_MS,
    );
    const ca = await readFile(certificate, 'utf8');
    return new KubeApiServer(stack.move(), scratch, `https://127.0.0.1:${port}`, ca, tokens);
  }

  /** Writes the kubeconfig of one of the users; returns its path. */
  kubeconfig(user: string): Promise<string> {
    const token = this.tokens.get(user);
    if (token === undefined) throw new Error(`the API server was started without a user ${user}`);
    const config = {
      apiVersion: 'v1',
      kind: 'Config',
      'current-context': 'test',
      contexts: [{ name: 'test', context: { cluster: 'test', user } }],
      clusters: [{ name: 'test', cluster: { server: this.url, 'certificate-authority-data': Buffer.from(this.ca).toString('base64') } }],
      users: [{ name: user, user: { token } }],
    };
    // JSON is YAML.
    return this.scratch.file(`${user.replaceAll(':', '-')}.kubeconfig`, JSON.stringify(config, undefined, 1));
  }

  /** Gives a user rights in the whole cluster. */
  async allow(user: string, rules: readonly { resources: string[]; verbs: string[]; apiGroups?: string[] }[]): Promise<void> {
    const path = '/apis/rbac.authorization.k8s.io/v1';
    const role: KubeObject = { metadata: { name: user }, rules: rules.map((rule) => ({ apiGroups: [''], ...rule })) };
    await this.api.call('POST', `${path}/clusterroles`, role);
    await this.api.call('POST', `${path}/clusterrolebindings`, {
      metadata: { name: user },
      roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: user },
      subjects: [{ apiGroup: 'rbac.authorization.k8s.io', kind: 'User', name: user }],
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stack.disposeAsync();
  }
}

/** Debian's etcd with one member; returns its address. */
async function startEtcd(scratch: Scratch, stack: AsyncDisposableStack): Promise<string> {
  const client = `http://127.0.0.1:${await freePort()}`;
  const peer = `http://127.0.0.1:${await freePort()}`;
  const daemon = await Daemon.start({
    name: 'etcd',
    command: 'etcd',
    args: [
      ...['--name', 'test', '--data-dir', scratch.join('etcd')],
      ...['--listen-client-urls', client, '--advertise-client-urls', client],
      ...['--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer, '--initial-cluster', `test=${peer}`],
    ],
    logPath: scratch.join('etcd.log'),
  });
  stack.use(daemon);
  await daemon.waitReady('an answer to /health', () => answersHttp(`${client}/health`), READY_MS);
  return client;
}

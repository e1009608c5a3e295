/**
 * TLS settings of one endpoint. A profile is immutable: when a certificate file changes, the hosts file is read again and gives a new
 * profile, and connections made with the old one run out. Authorities in a hosts file are added to the system's, as in containerd.
 */
import { createHash } from 'node:crypto';
import tls from 'node:tls';
import { AppError } from '../base/errors.ts';

export interface TlsMaterial {
  /** PEM bundles trusted besides the system's. */
  readonly ca: readonly Uint8Array[];
  /** Client certificates and their keys, PEM. The key may be in the same file. */
  readonly clients: readonly { certificate: Uint8Array; key: Uint8Array }[];
  readonly skipVerify: boolean;
}

/** A hashed name for equal settings, and the context that OpenSSL keeps for them (made at first use: it parses the system's bundle). */
export class TlsProfile {
  readonly id: string;
  readonly skipVerify: boolean;
  private readonly material: TlsMaterial;
  private context: tls.SecureContext | undefined;
  private anonymous: TlsProfile | undefined;

  constructor(material: TlsMaterial) {
    this.material = material;
    this.skipVerify = material.skipVerify;
    const hash = createHash('sha256').update(material.skipVerify ? 'skip\n' : 'verify\n');
    const part = (name: string, bytes: Uint8Array) => hash.update(`${name} ${bytes.length}\n`).update(bytes);
    for (const ca of material.ca) part('ca', ca);
    for (const client of material.clients) part('cert', client.certificate) && part('key', client.key);
    this.id = hash.digest('hex').slice(0, 32);
  }

  /** The same trust without client certificates, for other origins that a redirect names. */
  withoutClients(): TlsProfile {
    if (this.material.clients.length === 0) return this;
    this.anonymous ??= new TlsProfile({ ...this.material, clients: [] });
    return this.anonymous;
  }

  /** Throws FailedPrecondition when a certificate or key cannot be used. One context serves all connections. */
  secureContext(): tls.SecureContext {
    if (this.context !== undefined) return this.context;
    const { ca, clients } = this.material;
    try {
      this.context = tls.createSecureContext({
        ca: [...systemAuthorities(), ...ca.map((pem) => Buffer.from(pem))],
        minVersion: 'TLSv1.2',
        ...(clients.length === 0
          ? {}
          : { cert: clients.map((client) => Buffer.from(client.certificate)), key: clients.map((client) => Buffer.from(client.key)) }),
      });
    } catch (cause) {
      throw new AppError('FailedPrecondition', {
        op: 'load certificates',
        subject: 'of a registry host',
        what: 'a CA, client certificate or key from its hosts directory cannot be used',
        cause,
      });
    }
    return this.context;
  }
}

export const DEFAULT_TLS = new TlsProfile({ ca: [], clients: [], skipVerify: false });
export const INSECURE_TLS = new TlsProfile({ ca: [], clients: [], skipVerify: true });

let authorities: readonly string[] | undefined;

/** The machine's authorities; those that come with Node where the machine has none (an image without ca-certificates). */
function systemAuthorities(): readonly string[] {
  if (authorities === undefined) {
    const system = tls.getCACertificates('system');
    authorities = [...(system.length > 0 ? system : tls.getCACertificates('bundled')), ...tls.getCACertificates('extra')];
  }
  return authorities;
}

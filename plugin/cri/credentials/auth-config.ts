/** Credentials as CRI carries them, to ours and back. Source: containerd's `ParseAuth`, whose rules for which field counts are the same. */
import type { Credential } from '../../registry/credentials.ts';
import type { AuthConfig } from '../wire/messages.ts';

/** `https://registry.example:5000/v1/` → `registry.example:5000`. */
function hostOfServer(address: string): string {
  return address
    .replace(/^[a-z]+:\/\//i, '')
    .replace(/\/.*$/, '')
    .toLowerCase();
}

/** What a pull brought for a registry; undefined when it brought nothing, or something for another registry. */
export function credentialOf(auth: AuthConfig | undefined, host: string): Credential | undefined {
  if (auth === undefined) return undefined;
  if (auth.serverAddress !== '') {
    const server = hostOfServer(auth.serverAddress);
    const isHub = host === 'docker.io' && /^(?:index\.docker\.io|registry-1\.docker\.io|docker\.io)$/.test(server);
    if (server !== host.toLowerCase() && !isHub) return undefined;
  }
  if (auth.username !== '') return { username: auth.username, password: auth.password };
  if (auth.identityToken !== '') return { identityToken: auth.identityToken };
  if (auth.auth !== '') {
    const decoded = Buffer.from(auth.auth, 'base64').toString('utf8');
    const colon = decoded.indexOf(':');
    return colon < 1 ? undefined : { username: decoded.slice(0, colon), password: decoded.slice(colon + 1).replace(/\0+$/, '') };
  }
  return auth.registryToken === '' ? undefined : { registryToken: auth.registryToken };
}

export function authOf(credential: Credential): Partial<AuthConfig> {
  if ('password' in credential) return { username: credential.username, password: credential.password };
  return credential;
}

/**
 * Which proxy leads to an origin, from the environment as Go programs (containerd among them) read it: HTTP_PROXY, HTTPS_PROXY and
 * NO_PROXY, upper or lower case. Source: golang.org/x/net/http/httpproxy. This machine's own addresses are never proxied.
 */
import { BlockList, isIP } from 'node:net';
import { isLocalHost } from './reference.ts';

export type Environment = Readonly<Record<string, string | undefined>>;

/** Longest NO_PROXY list that is looked at: lists are written by hand. */
const MAX_NO_PROXY_ENTRIES = 1000;

export class ProxyRules {
  private readonly httpProxy: string | undefined;
  private readonly httpsProxy: string | undefined;
  private readonly excludesAll: boolean;
  private readonly excludedNets = new BlockList();
  /** Lower-case names; those that begin with a dot mean sub-domains only. With the port they are limited to, if any. */
  private readonly excludedNames: { name: string; port: string | undefined }[] = [];

  constructor(env: Environment) {
    this.httpProxy = proxyUrl(env.HTTP_PROXY ?? env.http_proxy);
    this.httpsProxy = proxyUrl(env.HTTPS_PROXY ?? env.https_proxy);
    const entries = (env.NO_PROXY ?? env.no_proxy ?? '')
      .toLowerCase()
      .split(/[,\s]+/)
      .filter((entry) => entry !== '');
    this.excludesAll = entries.includes('*');
    for (const entry of entries.slice(0, MAX_NO_PROXY_ENTRIES)) this.exclude(entry);
  }

  private exclude(entry: string): void {
    const [net = '', bits] = entry.split('/', 2);
    const family = isIP(net) === 6 ? 'ipv6' : 'ipv4';
    if (isIP(net) !== 0 && bits === undefined) this.excludedNets.addAddress(net, family);
    else if (isIP(net) !== 0 && /^\d{1,3}$/.test(bits ?? '') && Number(bits) <= (family === 'ipv6' ? 128 : 32)) {
      this.excludedNets.addSubnet(net, Number(bits), family);
    } else {
      const match = /^(.*?)(?::(\d{1,5}))?$/.exec(entry.startsWith('*.') ? entry.slice(1) : entry);
      if (match?.[1] !== undefined && match[1] !== '') this.excludedNames.push({ name: match[1], port: match[2] });
    }
  }

  /** The proxy's URL (it may hold a password: never log it), or undefined to go straight. */
  proxyFor(origin: string): string | undefined {
    const url = new URL(origin);
    const proxy = url.protocol === 'https:' ? this.httpsProxy : this.httpProxy;
    if (proxy === undefined || this.excludesAll || isLocalHost(url.host)) return undefined;
    const name = url.hostname.replace(/^\[|\]$/g, '').toLowerCase();
    if (isIP(name) !== 0 && this.excludedNets.check(name, isIP(name) === 6 ? 'ipv6' : 'ipv4')) return undefined;
    const port = url.port !== '' ? url.port : url.protocol === 'https:' ? '443' : '80';
    const isExcluded = this.excludedNames.some((rule) => {
      if (rule.port !== undefined && rule.port !== port) return false;
      return rule.name.startsWith('.') ? name.endsWith(rule.name) : name === rule.name || name.endsWith(`.${rule.name}`);
    });
    return isExcluded ? undefined : proxy;
  }
}

function proxyUrl(text: string | undefined): string | undefined {
  if (text === undefined || text.trim() === '') return undefined;
  const withScheme = /^[a-z0-9]+:\/\//i.test(text) ? text : `http://${text}`;
  return URL.canParse(withScheme) ? new URL(withScheme).href : undefined;
}

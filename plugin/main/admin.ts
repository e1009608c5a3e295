/** The admin API as the configuration wants it, over the parts of the control plane. */
import { type AdminAppOptions, createAdminApp } from '../../admin/app.ts';
import { Audit } from '../../admin/audit.ts';
import { TokenFile } from '../../admin/auth/token-file.ts';
import { Tokens } from '../../admin/auth/tokens.ts';
import { type AdminServer, startAdminServer } from '../../admin/server.ts';
import { AuditStore } from '../../db/audit-store.ts';
import type { Database } from '../../db/database.ts';
import { TokenStore } from '../../db/token-store.ts';
import { systemClock } from '../base/clock.ts';
import type { Config } from '../base/config/config.ts';
import type { Logger } from '../base/log.ts';

export type AdminParts = Omit<AdminAppOptions, 'tokens' | 'audit' | 'log'> & { database: Database };

/** Starts listening. Throws FailedPrecondition when a place cannot be listened on or the token file is unusable. */
export function startAdmin({ socket, tcpListen, tcpTokenFile }: Config['admin'], parts: AdminParts, log: Logger): Promise<AdminServer> {
  const { database, ...services } = parts;
  const audit = new Audit(log, new AuditStore(database));
  const tokens = new Tokens(new TokenStore(database), systemClock);
  const app = createAdminApp({ ...services, tokens, audit, log });
  const onFailure = (error: unknown): void => log.error({ err: error }, 'an admin request could not be looked at');
  if (tcpListen === undefined) return startAdminServer({ app, socketPath: socket, onFailure });
  const file = tcpTokenFile === undefined ? undefined : new TokenFile(tcpTokenFile, log);
  const callerOf = (token: string) => tokens.callerOf(token) ?? file?.callerOf(token);
  return startAdminServer({ app, socketPath: socket, onFailure, tcp: { address: tcpListen, callerOf, audit } });
}

/** What every request of the admin API carries: who asks, and a number to find it by. */
import type { OpenAPIHono } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type { Caller } from './auth/scopes.ts';

export interface AdminEnv {
  /** Set by the server that took the request; absent in tests, which are as good as root. `hangUpOnStall`: ends it when its caller takes nothing. */
  Bindings: { caller?: Caller; requestId?: string; hangUpOnStall?: () => void };
  Variables: {
    caller: Caller;
    requestId: string;
    /** Counts the request among the changes of its caller. Rejects with a refusal (429) when there are too many. */
    takeChangeTurn: () => Promise<void>;
    /** The vendor's action that is a change, for the audit log. */
    changeAction?: string;
    /** The caller lacked the scope, and the handler has answered so itself. */
    isRefused?: boolean;
  };
}

export type AdminApp = OpenAPIHono<AdminEnv>;
export type AdminContext = Context<AdminEnv>;

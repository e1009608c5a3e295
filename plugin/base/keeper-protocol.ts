/** What the keeper and its children say over Node's child-process channel. Descriptors travel beside it, over a socket pair. */

/** Child → keeper. `open`, `take`, `list` and `close` come from blockd only. */
export type ToKeeper =
  | { op: 'ready' }
  | { op: 'pong'; id: number }
  /** Make a FUSE connection, mount it at `mountPath` (a file) and send its descriptor. */
  | { op: 'open'; id: number; device: string; mountPath: string }
  /** Send the descriptor of a connection that exists, mounted at `mountPath`. */
  | { op: 'take'; id: number; device: string; mountPath: string }
  | { op: 'list'; id: number }
  /** Forget a connection whose last user is gone. */
  | { op: 'close'; id: number; device: string };

/** Keeper → child. */
export type FromKeeper =
  | { op: 'ping'; id: number }
  /** End in order; with `unmount`, take down what this process mounted. */
  | { op: 'stop'; unmount: boolean }
  | { op: 'reply'; id: number; error?: string; devices?: string[] };

/** The descriptor, in a child, of its end of the socket pair. */
export const DESCRIPTOR_SOCKET_FD = 4;

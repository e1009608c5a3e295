/** Logging: JSON lines on standard error, which systemd's journal keeps. Secrets are removed by path, whoever logs them. */
import pino from 'pino';

export type Logger = pino.Logger;

const REDACTED = [
  'password',
  'auth',
  'token',
  'authorization',
  'secret',
  'headers.authorization',
  '*.password',
  '*.auth',
  '*.token',
  '*.secret',
];

/** A logger for one process. `level` is pino's: trace, debug, info, warn, error, fatal, silent. */
export function createLogger(name: string, level = process.env.OBD_LOG_LEVEL ?? 'info'): Logger {
  return pino(
    { name, level, redact: { paths: REDACTED, censor: '[removed]' }, serializers: { err: pino.stdSerializers.err } },
    pino.destination({ dest: 2, sync: true }),
  );
}

/** A logger that says nothing; for tests and as a default. */
export const silentLogger: Logger = pino({ level: 'silent' });

/** Answers of the admin API, checked against its OpenAPI document by a JSON Schema validator that knows nothing of zod. Ours. */
import { Ajv2020 } from 'ajv/dist/2020.js';

export interface ApiOperation {
  security: { bearer?: string[] }[];
  responses: Record<string, { content?: Record<string, { schema?: object }> }>;
}

export interface ApiDocument {
  openapi: string;
  paths: Record<string, Record<string, ApiOperation>>;
  components: { schemas: Record<string, object> };
}

export interface DocumentedOperation {
  method: string;
  path: string;
  operation: ApiOperation;
}

export function operationsOf(document: ApiDocument): DocumentedOperation[] {
  return Object.entries(document.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({ method: method.toUpperCase(), path, operation })),
  );
}

/** What is wrong with a value by a schema of the document, as one line; undefined when nothing is. */
export function misfit(document: ApiDocument, schema: object, value: unknown): string | undefined {
  const ajv = new Ajv2020({ strict: false, validateFormats: false });
  // A copy: a schema that comes twice must not carry one identity.
  const check = ajv.compile({ ...(JSON.parse(JSON.stringify(schema)) as object), components: document.components });
  return check(value) ? undefined : JSON.stringify(check.errors?.slice(0, 3));
}

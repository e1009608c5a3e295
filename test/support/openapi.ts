/** Answers of the admin API, checked against its OpenAPI document by a JSON Schema validator that knows nothing of zod. Ours. */
import { Ajv2020 } from 'ajv/dist/2020.js';

export interface ApiResponse {
  description: string;
  content?: Record<string, { schema?: object }>;
}

export interface ApiOperation {
  security: { bearer?: string[] }[];
  responses: Record<string, ApiResponse>;
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

/** The operation that a request is for; undefined when none is documented. `path` without its query. */
export function operationOf(document: ApiDocument, method: string, path: string): DocumentedOperation | undefined {
  const fits = (template: string): boolean => {
    const pattern = template.replace(/[.*+?^$()|[\]\\]/g, '\\$&').replace(/\{\w+\}/g, '[^/]+');
    return new RegExp(`^${pattern}$`).test(path);
  };
  return operationsOf(document).find((one) => one.method === method && fits(one.path));
}

/**
 * What is wrong with an answer by what is documented for its operation and status, as one line; undefined when nothing is. Of a stream of
 * events the first one's data is checked, against the schema that the description names.
 */
export function answerMisfit(document: ApiDocument, { operation }: DocumentedOperation, answer: ApiAnswer): string | undefined {
  const { status, type, body } = answer;
  const described = operation.responses[String(status)] ?? operation.responses.default;
  if (described === undefined) return `the status ${status} is not described`;
  if (described.content === undefined) return body === '' ? undefined : 'a body is not described';
  const content = described.content[type];
  if (content === undefined) return `the type ${type} is not described`;
  if (type === 'text/event-stream') {
    const name = /data is an? (\w+)/.exec(described.description)?.[1] ?? '';
    const schema = document.components.schemas[name];
    const data = /^data: (.*)$/m.exec(body)?.[1];
    if (schema === undefined || data === undefined) return 'what its data is cannot be found';
    return misfit(document, schema, JSON.parse(data));
  }
  return type === 'application/json' ? misfit(document, content.schema ?? {}, JSON.parse(body)) : undefined;
}

export interface ApiAnswer {
  status: number;
  /** Content type without parameters; empty when there is no body. */
  type: string;
  body: string;
}

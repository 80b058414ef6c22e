import type { Failure, Rating, StoredAnswer } from './answer'

export interface Conversation {
  id: string
  title: string | null
  created_at: string
  updated_at: string
}

export interface Page<Item> {
  items: Item[]
  next: string | null
}

export interface Asked {
  id: string
  conversation_id: string
  message: string
  replaces?: string
}

/** An answer of the API that is an error, or none at all (`unreachable`, which is all that a browser says then). */
export class ApiError extends Error {
  readonly failure: Failure
  readonly status: number

  constructor(kind: string, status = 0, seconds = 0) {
    super(kind)
    this.failure = { kind, seconds }
    this.status = status
  }
}

export type Tokens = (anew?: boolean) => Promise<string | null>

/** The API's routes that the page uses. Each method throws ApiError. */
export class Api {
  constructor(
    readonly url: string,
    readonly tokens: Tokens,
  ) {}

  ask(asked: Asked, last: string, signal: AbortSignal): Promise<Response> {
    return this.#stream('POST', '/chat', last, signal, { ...asked, stream: true })
  }

  follow(answerId: string, last: string, signal: AbortSignal): Promise<Response> {
    return this.#stream('GET', `/chat/${answerId}`, last, signal)
  }

  async stop(answerId: string) {
    await this.#call('POST', `/chat/${answerId}/stop`)
  }

  /** For an answer of which nothing has come yet: it may not be known by its own id. */
  async stopIn(conversationId: string) {
    await this.#call('DELETE', `/chat/${conversationId}/stream`)
  }

  async rate(answerId: string, rating: Rating, words: string | null) {
    await this.#call('PUT', `/chat/${answerId}/feedback`, { rating, words })
  }

  async conversations(cursor: string | null, wanted: string): Promise<Page<Conversation>> {
    const query = new URLSearchParams({ limit: '40' })
    if (cursor) query.set('cursor', cursor)
    if (wanted) query.set('q', wanted)
    return (await this.#call('GET', `/conversations?${query}`)).json()
  }

  async conversation(id: string, cursor: string | null): Promise<Conversation & Page<StoredAnswer>> {
    const query = new URLSearchParams({ limit: '30' })
    if (cursor) query.set('cursor', cursor)
    return (await this.#call('GET', `/conversations/${id}?${query}`)).json()
  }

  async rename(id: string, title: string) {
    await this.#call('PATCH', `/conversations/${id}`, { title })
  }

  async remove(id: string) {
    await this.#call('DELETE', `/conversations/${id}`)
  }

  #stream(method: string, path: string, last: string, signal: AbortSignal, body?: unknown) {
    const headers = { Accept: 'text/event-stream', ...(last && { 'Last-Event-ID': last }) }
    return this.#call(method, path, body, { signal, headers })
  }

  async #call(
    method: string,
    path: string,
    body?: unknown,
    options: { signal?: AbortSignal; headers?: Record<string, string> } = {},
  ): Promise<Response> {
    let token = await this.tokens()
    for (let attempt = 0; ; attempt++) {
      if (!token) throw new ApiError('signed-out', 401)
      const response = await fetch(this.url + path, {
        method,
        // A request that is under way when the page is left still arrives.
        keepalive: method === 'DELETE',
        signal: options.signal ?? null,
        headers: {
          Authorization: `Bearer ${token}`,
          ...(body !== undefined && { 'Content-Type': 'application/json' }),
          ...options.headers,
        },
        ...(body !== undefined && { body: JSON.stringify(body) }),
      }).catch(() => {
        throw new ApiError('unreachable')
      })
      if (response.ok) return response
      if (response.status === 401 && attempt === 0) {
        token = await this.tokens(true)
        continue
      }
      throw await errorOf(response)
    }
  }
}

async function errorOf(response: Response): Promise<ApiError> {
  const problem: { type?: unknown } = await response.json().catch(() => ({}))
  const kind = String(problem.type ?? '').replace('urn:cimt:problem:', '')
  const seconds = Number(response.headers.get('Retry-After')) || 0
  if (response.status === 401) return new ApiError('signed-out', 401)
  // A proxy's own page says nothing of ours.
  return new ApiError(kind || 'unreachable', response.status, seconds)
}

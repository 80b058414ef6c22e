/** One server-sent event: its data, and the id that was valid then. */
export interface ServerEvent {
  id: string
  data: string
}

/**
 * A parser of event streams (HTML, §9.2.6) that may be fed with any pieces: a cut may fall anywhere, between the two
 * characters of a line's end too. Comments, and fields that we have no use for, are passed over.
 */
export class EventParser {
  #rest = ''
  #data: string[] = []
  #id = ''
  #begun = false

  /** Take a piece of text; return the events that are complete with it. */
  push(piece: string): ServerEvent[] {
    const events: ServerEvent[] = []
    let text = this.#rest + piece
    if (!this.#begun && text) {
      text = text.replace(/^\uFEFF/, '')
      this.#begun = true
    }
    let from = 0
    for (const end of text.matchAll(/\r\n|\n|\r/g)) {
      // A \r at the very end may be the first half of \r\n.
      if (end[0] === '\r' && end.index === text.length - 1) break
      this.#line(text.slice(from, end.index), events)
      from = end.index + end[0].length
    }
    this.#rest = text.slice(from)
    return events
  }

  #line(line: string, events: ServerEvent[]) {
    if (line === '') {
      if (this.#data.length) events.push({ id: this.#id, data: this.#data.join('\n') })
      this.#data = []
      return
    }
    const [, name, value] = /^([^:]*)(?:: ?)?(.*)$/s.exec(line) ?? []
    if (name === 'data') this.#data.push(value ?? '')
    else if (name === 'id' && !value?.includes('\0')) this.#id = value ?? ''
  }
}

/**
 * The events of a response's body, as they come; `heard` is called for every piece, an empty sign of life too.
 * Ends where the body ends; throws what reading it throws.
 */
export async function* readEvents(
  body: ReadableStream<Uint8Array>,
  heard: () => void = () => {},
): AsyncGenerator<ServerEvent> {
  const reader = body.getReader()
  const decoder = new TextDecoder()
  const parser = new EventParser()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      heard()
      yield* parser.push(decoder.decode(value, { stream: true }))
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

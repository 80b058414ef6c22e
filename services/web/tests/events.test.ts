import { describe, expect, it } from 'vitest'
import { EventParser, readEvents, type ServerEvent } from '../src/events'

const STREAM = [
  '\uFEFF: still there\n',
  'id: 0\r\ndata: {"choices":[],"cimt":{"sources":[]}}\r\n\r\n',
  'id: 4\rdata: {"text":"Olá, ção 👋🏽"}\r\r',
  'id: 9\ndata:no space\ndata: second line\nretry: 10\nunknown\n\n',
  ': still there\n',
  'data: [DONE]\n\n',
  'data: never ended',
].join('')
const EVENTS: ServerEvent[] = [
  { id: '0', data: '{"choices":[],"cimt":{"sources":[]}}' },
  { id: '4', data: '{"text":"Olá, ção 👋🏽"}' },
  { id: '9', data: 'no space\nsecond line' },
  { id: '9', data: '[DONE]' },
]

async function read(pieces: Uint8Array[]): Promise<ServerEvent[]> {
  const events: ServerEvent[] = []
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const piece of pieces) controller.enqueue(piece)
      controller.close()
    },
  })
  for await (const event of readEvents(body)) events.push(event)
  return events
}

describe('a stream of events', () => {
  const bytes = new TextEncoder().encode(STREAM)

  it('is the same wherever it is cut in two, within characters and ends of lines too', async () => {
    for (let at = 0; at <= bytes.length; at++)
      expect(await read([bytes.slice(0, at), bytes.slice(at)]), `cut at byte ${at}`).toEqual(EVENTS)
  })

  it('is the same when it comes byte by byte', async () => {
    expect(await read([...bytes].map((byte) => Uint8Array.of(byte)))).toEqual(EVENTS)
  })

  it('gives an event as soon as its empty line is there', () => {
    const parser = new EventParser()
    expect(parser.push('id: 1\ndata: a\n')).toEqual([])
    expect(parser.push('\n')).toEqual([{ id: '1', data: 'a' }])
  })

  it('says that something was heard, when it was only a sign of life', async () => {
    let heard = 0
    const body = new Blob([': still there\n']).stream()
    for await (const _ of readEvents(body, () => heard++)) expect.unreachable()
    expect(heard).toBeGreaterThan(0)
  })
})

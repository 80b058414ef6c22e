import { describe, expect, it } from 'vitest'
import { after, eventOf, fromStore, isDone, newAnswer, type Answer, type AnswerEvent } from '../src/answer'

const source = { id: 1, source: 'a.md', title: 'A', url: null, passage: 'p' }
const head: AnswerEvent = { type: 'head', sources: [source], last: '0' }
const text = (words: string, last: string): AnswerEvent => ({ type: 'text', text: words, last })
const end = (status = 'complete'): AnswerEvent => ({ type: 'end', status, cutShort: false })
const fail: AnswerEvent = { type: 'fail', failure: { kind: 'busy', seconds: 5 } }
const asked = () => newAnswer('id', 'Why?', '2026-11-26T00:00:00Z')
const told = (...events: AnswerEvent[]): Answer => events.reduce(after, asked())

describe('an answer', () => {
  it('grows to its end, over a cut', () => {
    const answer = told(head, text('Three ', '6'), { type: 'cut' }, head, text('years.', '12'), end())
    expect(answer).toMatchObject({ phase: 'complete', text: 'Three years.', last: '12', sources: [source] })
  })

  it('says that its connection is lost, and keeps where to go on', () => {
    expect(told(head, text('Three', '5'), { type: 'cut' })).toMatchObject({ phase: 'waiting', last: '5', text: 'Three' })
  })

  it('stays as it is after each of its ends', () => {
    const ends = [told(head, end()), told(head, end('cancelled')), told(fail)]
    const events: AnswerEvent[] = [head, text('x', '1'), end(), { type: 'cut' }, { type: 'stop' }, fail, { type: 'restart' }]
    for (const ended of ends) {
      expect(isDone(ended)).toBe(true)
      for (const event of events) expect(after(ended, event)).toBe(ended)
    }
  })

  it('is stopped when its reader wants it, whatever the connection does meanwhile', () => {
    const stopping = told(head, text('Three', '5'), { type: 'stop' })
    expect(after(stopping, { type: 'cut' }).phase).toBe('stopping')
    expect(after(stopping, text(' years', '11'))).toMatchObject({ phase: 'stopping', text: 'Three years' })
    expect(after(stopping, fail)).toMatchObject({ phase: 'stopped', failure: null })
    expect(after(stopping, end('cancelled')).phase).toBe('stopped')
  })

  it('begins anew where nothing of it was kept', () => {
    expect(told(head, text('Three', '5'), { type: 'restart' })).toMatchObject({ text: '', last: '' })
  })

  it('keeps its text when it fails', () => {
    expect(told(head, text('Three', '5'), fail)).toMatchObject({
      phase: 'failed',
      text: 'Three',
      failure: { kind: 'busy', seconds: 5 },
    })
  })

  it('comes from the store in each of its states', () => {
    const row = { id: 'i', question: 'q', answer: 'a', sources: [], rating: null, created_at: '' }
    const phase = (status: string, error: string | null) => fromStore({ ...row, status, error }).phase
    expect(phase('complete', null)).toBe('complete')
    expect(phase('streaming', null)).toBe('waiting')
    expect(phase('cancelled', 'stopped')).toBe('stopped')
    expect(phase('cancelled', 'cancelled')).toBe('failed')
    expect(phase('failed', 'upstream-failing')).toBe('failed')
  })
})

describe('a chunk', () => {
  // As the API sends them: services/api/cimt_api/answers/wire.py.
  const chunk = (rest: object) => JSON.stringify({ id: 'chatcmpl-1', object: 'chat.completion.chunk', ...rest })
  const choice = (delta: object, finish_reason: string | null = null) => [{ index: 0, delta, finish_reason }]

  it('is what it says', () => {
    const first = chunk({ choices: choice({ role: 'assistant', content: '' }), cimt: { answer_id: 'a', sources: [source] } })
    expect(eventOf(first, '0')).toEqual(head)
    expect(eventOf(chunk({ choices: choice({ content: 'Hi' }) }), '2')).toEqual(text('Hi', '2'))
    expect(eventOf(chunk({ choices: choice({}, 'stop'), cimt: { status: 'complete' }, usage: {} }), '2')).toEqual(end())
    expect(eventOf(chunk({ choices: choice({}, 'length'), cimt: { status: 'complete' } }), '2')).toMatchObject({ cutShort: true })
    expect(eventOf(chunk({ choices: choice({}, 'stop'), cimt: { status: 'cancelled' } }), '2')).toMatchObject({ status: 'cancelled' })
    expect(eventOf(JSON.stringify({ error: { message: 'm', code: 'interrupted' } }), '2')).toEqual({
      type: 'fail',
      failure: { kind: 'interrupted', seconds: 0 },
    })
    expect(eventOf(chunk({ choices: [], usage: {} }), '2')).toBeNull()
  })
})

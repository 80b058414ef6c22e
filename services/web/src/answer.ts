/**
 * One answer, as a state machine. Whoever hears of something fires an event; `after` says what becomes of the answer.
 *
 *   asking ──head──▶ writing ──end──▶ complete
 *      │  ◀──────┐      │
 *      ├──cut──▶ waiting ◀──cut── writing        waiting: the connection is lost, another attempt is on its way
 *      ├──stop─▶ stopping ──end──▶ stopped       from waiting and writing too
 *      └──fail──────────────────▶ failed         from every state that is not an end
 *
 * An end is final: what comes after it changes nothing.
 */
export interface Source {
  id: number | string
  source: string
  title: string | null
  url: string | null
  passage: string
}

export type Phase = 'asking' | 'waiting' | 'writing' | 'stopping' | 'complete' | 'stopped' | 'failed'
export type Rating = 'up' | 'down' | null

export interface Failure {
  /** As the API calls it, without `urn:cimt:problem:`; or ours: unreachable, signed-out. */
  kind: string
  /** Until it makes sense to try again; 0 where nobody said so. */
  seconds: number
}

export interface Answer {
  id: string
  question: string
  text: string
  /** Id of the last event: after it a stream goes on. Empty: from the beginning. */
  last: string
  phase: Phase
  sources: Source[]
  failure: Failure | null
  /** The model ended where it had no more room. */
  cutShort: boolean
  rating: Rating
  /** ISO 8601 */
  createdAt: string
}

export type AnswerEvent =
  | { type: 'head'; sources: Source[]; last: string }
  | { type: 'text'; text: string; last: string }
  | { type: 'end'; status: string; cutShort: boolean }
  | { type: 'cut' }
  | { type: 'stop' }
  | { type: 'fail'; failure: Failure }
  | { type: 'restart' }

const ENDS: ReadonlySet<Phase> = new Set(['complete', 'stopped', 'failed'])

export const isDone = (answer: Answer) => ENDS.has(answer.phase)

export function newAnswer(id: string, question: string, createdAt: string): Answer {
  return {
    id,
    question,
    text: '',
    last: '',
    phase: 'asking',
    sources: [],
    failure: null,
    cutShort: false,
    rating: null,
    createdAt,
  }
}

/** The answer after an event. Events that its state does not know leave it as it is. */
export function after(answer: Answer, event: AnswerEvent): Answer {
  if (isDone(answer)) return answer
  const phase = answer.phase === 'stopping' ? 'stopping' : 'writing'
  switch (event.type) {
    case 'head':
      return { ...answer, phase, sources: event.sources, last: event.last }
    case 'text':
      return { ...answer, phase, text: answer.text + event.text, last: event.last }
    case 'end':
      if (event.status === 'complete') return { ...answer, phase: 'complete', cutShort: event.cutShort }
      return { ...answer, phase: 'stopped' }
    case 'cut':
      return answer.phase === 'stopping' ? answer : { ...answer, phase: 'waiting' }
    case 'stop':
      return { ...answer, phase: 'stopping' }
    case 'fail':
      // Whoever has pressed stop got what they wanted, whatever the connection says.
      if (answer.phase === 'stopping') return { ...answer, phase: 'stopped' }
      return { ...answer, phase: 'failed', failure: event.failure }
    case 'restart':
      return { ...answer, text: '', last: '' }
  }
}

/** An answer as GET /conversations/{id} has it. */
export interface StoredAnswer {
  id: string
  question: string
  answer: string
  status: string
  error: string | null
  sources: Source[]
  rating: Rating
  created_at: string
}

export function fromStore(stored: StoredAnswer): Answer {
  const answer = newAnswer(stored.id, stored.question, stored.created_at)
  const known = { text: stored.answer, sources: stored.sources, rating: stored.rating }
  if (stored.status === 'streaming') {
    // It is read again from its beginning.
    return { ...answer, ...known, phase: 'waiting' }
  }
  if (stored.status === 'complete') return { ...answer, ...known, phase: 'complete' }
  if (stored.status === 'cancelled' && stored.error === 'stopped')
    return { ...answer, ...known, phase: 'stopped' }
  return { ...answer, ...known, phase: 'failed', failure: { kind: stored.error ?? 'internal', seconds: 0 } }
}

/** What a chunk of the stream says, or null for one that says nothing to us. */
export function eventOf(data: string, id: string): AnswerEvent | null {
  const chunk = JSON.parse(data) as {
    error?: { code?: string }
    choices?: { delta?: { content?: string; role?: string }; finish_reason?: string | null }[]
    cimt?: { sources?: Source[]; status?: string }
  }
  if (chunk.error) return { type: 'fail', failure: { kind: chunk.error.code ?? 'internal', seconds: 0 } }
  if (chunk.cimt?.sources) return { type: 'head', sources: chunk.cimt.sources, last: id }
  const choice = chunk.choices?.[0]
  if (choice?.finish_reason || chunk.cimt?.status)
    return {
      type: 'end',
      status: chunk.cimt?.status ?? 'complete',
      cutShort: choice?.finish_reason === 'length',
    }
  if (choice?.delta?.content) return { type: 'text', text: choice.delta.content, last: id }
  return null
}

import { after, eventOf, fromStore, isDone, newAnswer, type Answer, type AnswerEvent, type Rating } from './answer'
import { ApiError, type Api, type Asked } from './api'
import { readEvents } from './events'
import { kept, Store } from './store'

/** Without a byte for so long a connection counts as lost: the API sends a sign every 15 seconds. */
const SILENCE_MS = 40_000
/** So long it is tried to reach the API again; without a network, until there is one. */
const PATIENCE_MS = 90_000
const PAUSES_MS = [300, 800, 1500, 3000, 5000]
/** Of a resumed answer: what passes by itself. */
const TRANSIENT = new Set(['unreachable', 'busy', 'database-unavailable', 'keys-unavailable', 'service-unavailable'])

export interface ChatState {
  /** Oldest first. */
  answers: Answer[]
  title: string | null
  /** Cursor of the older ones. */
  older: string | null
  loading: 'no' | 'yes' | 'failed' | 'missing'
}

/** What a reload goes on with. */
interface Kept {
  asked: Asked
  createdAt: string
}

/** One conversation: what is shown of it, and what is being written in it. Lives on while another one is shown. */
export class Chat {
  readonly store: Store<ChatState>
  #latest: ChatState
  #painted = true
  #current: AbortController | null = null
  #closed = false
  /** Questions that were asked again by themselves. */
  readonly #restarted = new Set<string>()

  constructor(
    readonly api: Api,
    readonly id: string,
    isNew: boolean,
    /** Called when something is asked, and when its answer has ended: the list has changed. */
    readonly changed: () => void,
  ) {
    this.#latest = { answers: [], title: null, older: null, loading: isNew ? 'no' : 'yes' }
    this.store = new Store(this.#latest)
    if (!isNew) void this.load()
  }

  get running(): Answer | null {
    return this.#latest.answers.find((answer) => !isDone(answer)) ?? null
  }

  /** Ask. With `replaces` that answer goes, and all after it: to ask again, or otherwise. */
  ask(message: string, replaces?: string): void {
    const id = crypto.randomUUID()
    const asked: Asked = { id, conversation_id: this.id, message, ...(replaces && { replaces }) }
    const createdAt = new Date().toISOString()
    kept.write('session', `asked.${this.id}`, JSON.stringify({ asked, createdAt } satisfies Kept))
    const at = replaces ? this.#latest.answers.findIndex((answer) => answer.id === replaces) : -1
    const before = at < 0 ? this.#latest.answers : this.#latest.answers.slice(0, at)
    this.#show({ ...this.#latest, loading: 'no', answers: [...before, newAnswer(id, message, createdAt)] })
    void this.#write(id, asked)
  }

  again(answer: Answer): void {
    this.ask(answer.question, answer.id)
  }

  /** Stop at the server; the text so far stays. Without a network it is stopped here, and there when nobody listens. */
  async stop(): Promise<void> {
    const answer = this.running
    if (!answer || answer.phase === 'stopping') return
    const begun = answer.text !== '' || answer.sources.length > 0
    this.#fire(answer.id, { type: 'stop' })
    try {
      // Before its first event an answer may not be known by its own id.
      await (begun ? this.api.stop(answer.id) : this.api.stopIn(this.id))
    } catch {
      this.#fire(answer.id, { type: 'fail', failure: { kind: 'unreachable', seconds: 0 } })
      this.#current?.abort()
    }
  }

  async rate(answer: Answer, rating: Rating, words: string | null): Promise<void> {
    this.#change(answer.id, (one) => ({ ...one, rating }))
    try {
      await this.api.rate(answer.id, rating, words)
    } catch {
      this.#change(answer.id, (one) => ({ ...one, rating: answer.rating }))
    }
  }

  rename(title: string): void {
    this.#show({ ...this.#latest, title })
  }

  /** Read the newest answers, and go on with the one that is being written. */
  async load(): Promise<void> {
    this.#show({ ...this.#latest, loading: 'yes' })
    const before = this.#kept()
    try {
      const page = await this.api.conversation(this.id, null)
      this.#show({
        title: page.title,
        older: page.next,
        loading: 'no',
        answers: page.items.map(fromStore).reverse(),
      })
    } catch (error) {
      const missing = error instanceof ApiError && error.status === 404
      if (!missing || !before) {
        this.#show({ ...this.#latest, loading: missing ? 'missing' : 'failed' })
        return
      }
      this.#show({ ...this.#latest, loading: 'no' }) // asked, and not stored yet
    }
    const last = this.#latest.answers.at(-1)
    if (before && last?.id !== before.asked.id) {
      const { id, message, replaces } = before.asked
      const at = this.#latest.answers.findIndex((answer) => answer.id === replaces)
      const answers = at < 0 ? this.#latest.answers : this.#latest.answers.slice(0, at)
      this.#show({ ...this.#latest, answers: [...answers, newAnswer(id, message, before.createdAt)] })
      void this.#write(id, before.asked)
    } else if (last && !isDone(last)) {
      this.#fire(last.id, { type: 'restart' })
      void this.#write(last.id, before?.asked ?? null)
    } else kept.write('session', `asked.${this.id}`, null)
  }

  async loadOlder(): Promise<void> {
    const cursor = this.#latest.older
    if (!cursor) return
    try {
      const page = await this.api.conversation(this.id, cursor)
      if (this.#latest.older !== cursor) return // asked for twice
      const answers = [...page.items.map(fromStore).reverse(), ...this.#latest.answers]
      this.#show({ ...this.#latest, older: page.next, answers })
    } catch {
      // The button stays.
    }
  }

  /** Listen no more: somebody else signs in. */
  close(): void {
    this.#closed = true
    this.#current?.abort()
  }

  /** Follow an answer to its end, over as many connections as it takes. */
  async #write(id: string, asked: Asked | null): Promise<void> {
    let lostSince = 0
    let attempt = 0
    let cameBack = false
    this.changed()
    while (!this.#closed) {
      const answer = this.#find(id)
      if (!answer || isDone(answer)) break
      const connection = new AbortController()
      this.#current = connection
      let heard = performance.now()
      const watch = setInterval(() => {
        if (performance.now() - heard > SILENCE_MS) connection.abort()
      }, 2000)
      try {
        const response = asked
          ? await this.api.ask(asked, answer.last, connection.signal)
          : await this.api.follow(id, answer.last, connection.signal)
        if (!response.body) throw new ApiError('unreachable')
        for await (const event of readEvents(response.body, () => (heard = performance.now()))) {
          lostSince = attempt = 0
          if (event.data !== '[DONE]') this.#fire(id, eventOf(event.data, event.id))
        }
      } catch (error) {
        const kind = error instanceof ApiError ? error.failure.kind : 'unreachable'
        const again = cameBack || answer.last !== '' || !asked
        if (error instanceof ApiError && kind === 'not-found' && asked && answer.last) {
          // What had come of it was stored nowhere: it is written anew.
          this.#fire(id, { type: 'restart' })
        } else if (error instanceof ApiError && !(TRANSIENT.has(kind) && (again || kind === 'unreachable'))) {
          this.#fire(id, { type: 'fail', failure: error.failure })
        }
      } finally {
        clearInterval(watch)
        this.#current = null
        connection.abort()
      }
      const now = this.#find(id)
      if (!now || isDone(now)) break
      cameBack = true
      lostSince ||= performance.now()
      this.#fire(id, { type: 'cut' })
      if (navigator.onLine && performance.now() - lostSince > PATIENCE_MS)
        this.#fire(id, { type: 'fail', failure: { kind: 'unreachable', seconds: 0 } })
      else await pause(PAUSES_MS[Math.min(attempt++, PAUSES_MS.length - 1)] ?? 0)
    }
    if (this.#closed) return
    const ended = this.#find(id)
    // A server that was replaced in the middle of an answer has it written anew by the next one: once.
    if (ended?.failure?.kind === 'interrupted' && this.#mayRestart(ended)) {
      this.again(ended)
      return
    }
    if (this.#kept()?.asked.id === id) kept.write('session', `asked.${this.id}`, null)
    this.changed()
  }

  #mayRestart(answer: Answer): boolean {
    const first = !this.#restarted.has(answer.question)
    this.#restarted.add(answer.question)
    return first
  }

  #kept(): Kept | null {
    try {
      return JSON.parse(kept.read('session', `asked.${this.id}`) ?? 'null') as Kept | null
    } catch {
      return null
    }
  }

  #find(id: string): Answer | undefined {
    return this.#latest.answers.find((answer) => answer.id === id)
  }

  #fire(id: string, event: AnswerEvent | null): void {
    if (event) this.#change(id, (answer) => after(answer, event), event.type === 'text')
  }

  #change(id: string, to: (answer: Answer) => Answer, soon = false): void {
    const answers = this.#latest.answers.map((answer) => (answer.id === id ? to(answer) : answer))
    this.#show({ ...this.#latest, answers }, soon)
  }

  /** Text is painted once a frame, however often it comes; everything else at once. */
  #show(state: ChatState, soon = false): void {
    this.#latest = state
    if (!soon) {
      this.#painted = true
      this.store.set(state)
    } else if (this.#painted) {
      this.#painted = false
      const paint = () => {
        this.#painted = true
        this.store.set(this.#latest)
      }
      if (document.hidden) setTimeout(paint, 250)
      else requestAnimationFrame(paint)
    }
  }
}

/** Wait, but no longer than until there is a network again, or somebody looks. */
function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => {
    const go = () => {
      clearTimeout(timer)
      window.removeEventListener('online', go)
      document.removeEventListener('visibilitychange', look)
      resolve()
    }
    const look = () => !document.hidden && go()
    const timer = setTimeout(go, navigator.onLine ? milliseconds : 3_600_000)
    window.addEventListener('online', go)
    document.addEventListener('visibilitychange', look)
  })
}

import { Api, type Conversation } from './api'
import { Chat } from './chat'
import { kept, Store } from './store'

/** So long a deletion can be taken back; then it is made. */
export const UNDO_MS = 7000

export interface ListState {
  items: Conversation[]
  next: string | null
  wanted: string
  loading: boolean
  failed: boolean
  /** Conversations that are about to be deleted: not shown any more. */
  leaving: string[]
}

/** What a signed-in person has: the list of conversations, and those that were opened. */
export class Workspace {
  readonly list = new Store<ListState>({
    items: [],
    next: null,
    wanted: '',
    loading: true,
    failed: false,
    leaving: [],
  })
  readonly #chats = new Map<string, Chat>()
  readonly #leaving = new Map<string, ReturnType<typeof setTimeout>>()
  #asked = 0

  constructor(readonly api: Api) {
    void this.refresh()
    window.addEventListener('pagehide', this.#flush)
  }

  /** The conversation of this id, opened once. */
  chat(id: string, isNew = false): Chat {
    let chat = this.#chats.get(id)
    if (!chat) {
      chat = new Chat(this.api, id, isNew, () => void this.refresh())
      this.#chats.set(id, chat)
    }
    return chat
  }

  /** Open a new conversation with its first question; returns its id. */
  begin(message: string): string {
    const id = crypto.randomUUID()
    this.chat(id, true).ask(message)
    return id
  }

  /** Read the first page again; with `wanted` only what holds these words. */
  async refresh(wanted = this.list.get().wanted): Promise<void> {
    const asked = ++this.#asked
    this.list.set({ ...this.list.get(), wanted, loading: true })
    try {
      const page = await this.api.conversations(null, wanted)
      if (asked !== this.#asked) return // another search has begun since
      this.list.set({ ...this.list.get(), ...page, loading: false, failed: false })
    } catch {
      if (asked === this.#asked) this.list.set({ ...this.list.get(), loading: false, failed: true })
    }
  }

  async more(): Promise<void> {
    const { next, wanted, items } = this.list.get()
    if (!next) return
    try {
      const page = await this.api.conversations(next, wanted)
      this.list.set({ ...this.list.get(), items: [...items, ...page.items], next: page.next })
    } catch {
      // The button stays.
    }
  }

  async rename(id: string, title: string): Promise<void> {
    const before = this.list.get().items
    const items = before.map((one) => (one.id === id ? { ...one, title } : one))
    this.list.set({ ...this.list.get(), items })
    this.#chats.get(id)?.rename(title)
    try {
      await this.api.rename(id, title)
    } catch {
      await this.refresh()
    }
  }

  /** Take a conversation away, and delete it when nobody has taken that back in time. */
  remove(id: string): void {
    this.list.set({ ...this.list.get(), leaving: [...this.list.get().leaving, id] })
    this.#leaving.set(
      id,
      setTimeout(() => void this.#remove(id), UNDO_MS),
    )
  }

  undo(id: string): void {
    clearTimeout(this.#leaving.get(id))
    this.#leaving.delete(id)
    this.list.set({ ...this.list.get(), leaving: this.list.get().leaving.filter((one) => one !== id) })
  }

  close(): void {
    this.#flush()
    window.removeEventListener('pagehide', this.#flush)
    for (const chat of this.#chats.values()) chat.close()
  }

  readonly #flush = (): void => {
    for (const [id, timer] of this.#leaving) {
      clearTimeout(timer)
      void this.#remove(id)
    }
  }

  async #remove(id: string): Promise<void> {
    this.#leaving.delete(id)
    this.#chats.get(id)?.close()
    this.#chats.delete(id)
    kept.write('session', `draft.${id}`, null)
    try {
      await this.api.remove(id)
      const items = this.list.get().items.filter((one) => one.id !== id)
      this.list.set({ ...this.list.get(), items })
    } catch {
      // It comes back into the list, as it is still there.
    }
    this.undo(id)
  }
}

import { useSyncExternalStore } from 'react'

/** A value that components follow: `useStore(store)`. A new state is a new object. */
export class Store<State> {
  #state: State
  readonly #listeners = new Set<() => void>()

  constructor(state: State) {
    this.#state = state
  }

  readonly get = (): State => this.#state

  readonly subscribe = (listener: () => void): (() => void) => {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  readonly set = (state: State): void => {
    if (state === this.#state) return
    this.#state = state
    for (const listener of this.#listeners) listener()
  }
}

export function useStore<State>(store: Store<State>): State {
  return useSyncExternalStore(store.subscribe, store.get)
}

/** What a browser keeps for a tab, or for good; one that refuses (private windows of old) keeps it nowhere. */
export const kept = {
  read(storage: 'session' | 'local', key: string): string | null {
    try {
      return window[`${storage}Storage`].getItem(`cimt.${key}`)
    } catch {
      return null
    }
  },
  write(storage: 'session' | 'local', key: string, value: string | null): void {
    try {
      const place = window[`${storage}Storage`]
      if (value === null || value === '') place.removeItem(`cimt.${key}`)
      else place.setItem(`cimt.${key}`, value)
    } catch {
      // Nothing is lost but comfort.
    }
  },
}

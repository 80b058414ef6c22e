import { Store } from './store'

/** Pages: a new conversation (/), one that there is (/c/ID), and where links of mails lead (/sign-in#token_hash=…). */
export type Place = { page: 'new' } | { page: 'conversation'; id: string } | { page: 'link'; tokenHash: string }

const UUID = /^\/c\/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$/

export function placeOf(location: { pathname: string; hash: string }): Place {
  const id = UUID.exec(location.pathname)?.[1]
  if (id) return { page: 'conversation', id }
  const tokenHash = new URLSearchParams(location.hash.slice(1)).get('token_hash')
  if (location.pathname === '/sign-in' && tokenHash) return { page: 'link', tokenHash }
  return { page: 'new' }
}

export const place = new Store<Place>(placeOf(window.location))

window.addEventListener('popstate', () => place.set(placeOf(window.location)))
// A second link, opened where the page of the first is open.
window.addEventListener('hashchange', () => place.set(placeOf(window.location)))

/** Go to a page; `replace`: the way back leads past this one. */
export function go(path: string, replace = false): void {
  if (replace) window.history.replaceState(null, '', path)
  else window.history.pushState(null, '', path)
  place.set(placeOf(window.location))
}

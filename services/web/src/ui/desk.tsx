import { useCallback, useEffect, useRef, useState } from 'react'
import { useMessages } from '../messages'
import { go, place } from '../router'
import { useStore } from '../store'
import type { Workspace } from '../workspace'
import { Conversation, NewConversation } from './conversation'
import { Icon } from './icons'
import { List } from './list'
import { Toasts } from './toasts'

/** What a signed-in person sees: the list beside the conversation, or, where there is no room, in a drawer. */
export function Desk({
  workspace,
  email,
  onSignOut,
}: {
  workspace: Workspace
  email: string
  onSignOut: (everywhere: boolean) => void
}) {
  const m = useMessages()
  const at = useStore(place)
  const online = useOnline()
  const narrow = useNarrow()
  const [open, setOpen] = useState(false)
  const opener = useRef<HTMLButtonElement>(null)
  const drawer = useRef<HTMLDialogElement>(null)
  const id = at.page === 'conversation' ? at.id : null
  const chat = id === null ? null : workspace.chat(id)
  const leaving = useStore(workspace.list).leaving

  const shut = useCallback(() => setOpen(false), [])
  useEffect(() => {
    if (narrow && open) drawer.current?.showModal()
    else drawer.current?.close()
  }, [narrow, open])
  useEffect(() => {
    if (id !== null && leaving.includes(id)) go('/', true)
  }, [id, leaving])

  const list = (
    <List workspace={workspace} current={id} email={email} onSignOut={onSignOut} onChosen={shut} />
  )
  return (
    <div className="desk">
      <a className="skip" href="#message">
        {m.skip}
      </a>
      {narrow ? (
        <dialog
          ref={drawer}
          className="drawer"
          aria-label={m.conversations}
          onClose={() => {
            setOpen(false)
            opener.current?.focus()
          }}
          onClick={(event) => event.target === drawer.current && setOpen(false)}
        >
          {list}
        </dialog>
      ) : (
        <aside className="side">{list}</aside>
      )}
      <main className="main">
        <div role="status" className="banner" hidden={online}>
          {!online && (
            <>
              <Icon name="cloud" /> {m.offline}
            </>
          )}
        </div>
        <header className="top">
          {narrow && (
            <button
              ref={opener}
              type="button"
              className="quiet square"
              aria-label={m.openList}
              aria-haspopup="dialog"
              onClick={() => setOpen(true)}
            >
              <Icon name="menu" />
            </button>
          )}
          <Title workspace={workspace} id={id} />
          {narrow && (
            <button
              type="button"
              className="quiet square"
              aria-label={m.newConversation}
              onClick={() => go('/')}
            >
              <Icon name="pen" />
            </button>
          )}
        </header>
        {chat ? (
          <Conversation key={chat.id} chat={chat} />
        ) : (
          <NewConversation onAsk={(text) => go(`/c/${workspace.begin(text)}`)} />
        )}
      </main>
      <Toasts />
    </div>
  )
}

function Title({ workspace, id }: { workspace: Workspace; id: string | null }) {
  const m = useMessages()
  const { items } = useStore(workspace.list)
  const found = items.find((one) => one.id === id)?.title
  const own = id === null ? null : workspace.chat(id).store.get().title
  const title = found ?? own ?? (id === null ? m.newConversation : '')
  useEffect(() => {
    document.title = title ? `${title} · ${m.product}` : m.product
  }, [title, m])
  return <h1>{title}</h1>
}

function useOnline(): boolean {
  const [online, setOnline] = useState(navigator.onLine)
  useEffect(() => {
    const look = () => setOnline(navigator.onLine)
    window.addEventListener('online', look)
    window.addEventListener('offline', look)
    return () => {
      window.removeEventListener('online', look)
      window.removeEventListener('offline', look)
    }
  }, [])
  return online
}

/** Whether there is no room for the list; at 200 % zoom neither. */
function useNarrow(): boolean {
  const [query] = useState(() => window.matchMedia('(max-width: 52rem)'))
  const [narrow, setNarrow] = useState(query.matches)
  useEffect(() => {
    const look = () => setNarrow(query.matches)
    query.addEventListener('change', look)
    return () => query.removeEventListener('change', look)
  }, [query])
  return narrow
}

import { useEffect, useRef, useState } from 'react'
import type { Conversation } from '../api'
import { LANGUAGES, choose as chooseLanguage, language, useMessages, type Language, type Messages } from '../messages'
import { go } from '../router'
import { useStore } from '../store'
import { THEMES, choose as chooseTheme, theme } from '../theme'
import { UNDO_MS, type Workspace } from '../workspace'
import { Dialog } from './dialog'
import { Icon, Logo } from './icons'
import { Menu } from './menu'
import { say } from './toasts'

const TYPING_MS = 250
const DAY_MS = 86_400_000

type Day = keyof Messages['days']

/** Which heading a conversation stands under, by the days of this browser's time zone. */
export function dayOf(when: string, now = new Date()): Day {
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime()
  const days = Math.ceil((midnight - new Date(when).getTime()) / DAY_MS)
  if (days <= 0) return 'today'
  if (days <= 1) return 'yesterday'
  if (days <= 7) return 'week'
  return days <= 30 ? 'month' : 'older'
}

export function List({
  workspace,
  current,
  email,
  onSignOut,
  onChosen,
}: {
  workspace: Workspace
  current: string | null
  email: string
  onSignOut: (everywhere: boolean) => void
  onChosen: () => void
}) {
  const m = useMessages()
  const state = useStore(workspace.list)
  const [wanted, setWanted] = useState(state.wanted)
  const [renaming, setRenaming] = useState<Conversation | null>(null)
  const first = useRef(true)
  useEffect(() => {
    if (first.current) {
      first.current = false
      return
    }
    const timer = setTimeout(() => void workspace.refresh(wanted.trim()), TYPING_MS)
    return () => clearTimeout(timer)
  }, [wanted, workspace])

  const open = (path: string) => {
    go(path)
    onChosen()
  }
  const remove = (id: string) => {
    workspace.remove(id)
    say(m.removed, UNDO_MS, {
      label: m.undo,
      run: () => {
        workspace.undo(id)
        say(m.undone, 3000)
      },
    })
  }
  const shown = state.items.filter((one) => !state.leaving.includes(one.id))
  const groups = new Map<Day, Conversation[]>()
  for (const one of shown) {
    const day = dayOf(one.updated_at)
    groups.set(day, [...(groups.get(day) ?? []), one])
  }
  return (
    <nav className="list" aria-label={m.conversations}>
      <div className="brand">
        <Logo />
        <span>{m.product}</span>
      </div>
      <button type="button" className="new" onClick={() => open('/')}>
        <Icon name="pen" /> {m.newConversation}
      </button>
      <label className="search">
        <Icon name="search" />
        <span className="hidden">{m.searchHint}</span>
        <input
          type="search"
          placeholder={m.search}
          value={wanted}
          onChange={(event) => setWanted(event.target.value)}
        />
      </label>
      <div className="groups">
        {[...groups].map(([day, items]) => (
          <section key={day} aria-labelledby={`day-${day}`}>
            <h2 id={`day-${day}`}>{m.days[day]}</h2>
            <ul>
              {items.map((one) => (
                <Item
                  key={one.id}
                  item={one}
                  current={one.id === current}
                  onOpen={() => open(`/c/${one.id}`)}
                  onRename={() => setRenaming(one)}
                  onRemove={() => remove(one.id)}
                />
              ))}
            </ul>
          </section>
        ))}
        <p className="note" role="status">
          {state.failed
            ? m.listFailed
            : shown.length || state.loading
              ? ''
              : state.wanted
                ? m.nothingFound
                : m.noConversations}
        </p>
        {state.failed && (
          <button type="button" className="quiet" onClick={() => void workspace.refresh()}>
            {m.tryAgain}
          </button>
        )}
        {state.next && (
          <button type="button" className="quiet" onClick={() => void workspace.more()}>
            {m.more}
          </button>
        )}
      </div>
      <Account email={email} onSignOut={onSignOut} />
      {renaming && (
        <Rename
          item={renaming}
          onClose={() => setRenaming(null)}
          onSave={(title) => {
            void workspace.rename(renaming.id, title)
            setRenaming(null)
          }}
        />
      )}
    </nav>
  )
}

function Item({
  item,
  current,
  onOpen,
  onRename,
  onRemove,
}: {
  item: Conversation
  current: boolean
  onOpen: () => void
  onRename: () => void
  onRemove: () => void
}) {
  const m = useMessages()
  const title = item.title ?? m.untitled
  return (
    <li className={current ? 'item current' : 'item'}>
      <a
        href={`/c/${item.id}`}
        title={title}
        aria-current={current ? 'page' : undefined}
        onClick={(event) => {
          if (event.metaKey || event.ctrlKey || event.shiftKey) return // another tab
          event.preventDefault()
          onOpen()
        }}
      >
        {title}
      </a>
      <Menu label={m.options(title)} button={<Icon name="dots" />} className="options">
        {(close) => (
          <>
            <button
              type="button"
              role="menuitem"
              onClick={() => {
                close()
                onRename()
              }}
            >
              <Icon name="pen" /> {m.rename}
            </button>
            <button
              type="button"
              role="menuitem"
              className="danger"
              onClick={() => {
                close()
                onRemove()
              }}
            >
              <Icon name="bin" /> {m.remove}
            </button>
          </>
        )}
      </Menu>
    </li>
  )
}

function Rename({
  item,
  onClose,
  onSave,
}: {
  item: Conversation
  onClose: () => void
  onSave: (title: string) => void
}) {
  const m = useMessages()
  const [title, setTitle] = useState(item.title ?? '')
  return (
    <Dialog
      title={m.rename}
      onClose={onClose}
      onSubmit={() => title.trim() && onSave(title.trim())}
    >
      <label>
        {m.title}
        <input
          maxLength={200}
          required
          value={title}
          onChange={(event) => setTitle(event.target.value)}
        />
      </label>
      <div className="row end">
        <button type="button" className="quiet" onClick={onClose}>
          {m.cancel}
        </button>
        <button className="primary">{m.save}</button>
      </div>
    </Dialog>
  )
}

function Account({ email, onSignOut }: { email: string; onSignOut: (everywhere: boolean) => void }) {
  const m = useMessages()
  const chosenLanguage = useStore(language)
  const chosenTheme = useStore(theme)
  return (
    <Menu
      label={`${email}: ${m.account}`}
      above
      className="account"
      button={
        <>
          <span className="avatar" aria-hidden="true" data-letter={email.slice(0, 1).toUpperCase()} />
          <span className="address">{email}</span>
        </>
      }
    >
      {(close) => (
        <>
          {/* a group of a menu */}
          <div role="group" aria-label={m.language}>
            <span className="caption">{m.language}</span>
            {(Object.keys(LANGUAGES) as Language[]).map((one) => (
              <button
                key={one}
                type="button"
                role="menuitemradio"
                aria-checked={one === chosenLanguage}
                lang={one}
                onClick={() => chooseLanguage(one)}
              >
                {LANGUAGES[one].name}
                {one === chosenLanguage && <Icon name="check" />}
              </button>
            ))}
          </div>
          {/* a group of a menu */}
          <div role="group" aria-label={m.appearance}>
            <span className="caption">{m.appearance}</span>
            {THEMES.map((one) => (
              <button
                key={one}
                type="button"
                role="menuitemradio"
                aria-checked={one === chosenTheme}
                onClick={() => chooseTheme(one)}
              >
                {m.themes[one]}
                {one === chosenTheme && <Icon name="check" />}
              </button>
            ))}
          </div>
          {[false, true].map((everywhere) => (
            <button
              key={String(everywhere)}
              type="button"
              role="menuitem"
              onClick={() => {
                close()
                onSignOut(everywhere)
              }}
            >
              <Icon name="out" /> {everywhere ? m.signOutEverywhere : m.signOut}
            </button>
          ))}
        </>
      )}
    </Menu>
  )
}

import { useEffect, useLayoutEffect, useRef, useState } from 'react'
import { isDone, type Answer, type Source } from '../answer'
import type { Chat } from '../chat'
import { useMessages } from '../messages'
import { go } from '../router'
import { useStore } from '../store'
import { Composer } from './composer'
import { Dialog } from './dialog'
import { Icon, Logo } from './icons'
import { Turn } from './turn'

/** So near to the end the view follows what comes. */
const NEAR_PX = 48

export function NewConversation({ onAsk }: { onAsk: (text: string) => void }) {
  const m = useMessages()
  return (
    <>
      <div className="scroll">
        <div className="welcome">
          <Logo />
          <h2>{m.greeting}</h2>
          <p>{m.greetingMore}</p>
          <ul className="suggestions">
            {m.suggestions.map((text) => (
              <li key={text}>
                <button type="button" onClick={() => onAsk(text)}>
                  {text}
                </button>
              </li>
            ))}
          </ul>
        </div>
      </div>
      <Composer draft="new" writing={false} onAsk={onAsk} onStop={() => {}} />
    </>
  )
}

export function Conversation({ chat }: { chat: Chat }) {
  const m = useMessages()
  const state = useStore(chat.store)
  const [shown, setShown] = useState<{ source: Source; number: number } | null>(null)
  const running = state.answers.find((answer) => !isDone(answer))
  const { view, atEnd, toEnd, hold } = useFollowing(state.answers)
  const said = useAnnouncement(running, state.answers.at(-1))

  const ask = (text: string, replaces?: string) => {
    chat.ask(text, replaces)
    toEnd()
  }
  useEffect(() => {
    if (!running) return
    const stop = (event: KeyboardEvent) => {
      if (event.key === 'Escape' && !event.defaultPrevented && !document.querySelector('dialog[open]'))
        void chat.stop()
    }
    document.addEventListener('keydown', stop)
    return () => document.removeEventListener('keydown', stop)
  }, [chat, running])

  if (state.loading === 'missing') {
    return (
      <div className="scroll">
        <div className="welcome">
          <p>{m.missing}</p>
          <button type="button" className="primary" onClick={() => go('/', true)}>
            {m.newConversation}
          </button>
        </div>
      </div>
    )
  }
  return (
    <>
      <div className="scroll" ref={view}>
        {/* the log of a conversation; what is written is told once it is complete */}
        <div className="log" role="log" aria-label={m.conversations} aria-live="off" aria-busy={!!running}>
          {state.older && (
            <button
              type="button"
              className="quiet older"
              onClick={() => {
                hold()
                void chat.loadOlder()
              }}
            >
              {m.older}
            </button>
          )}
          {state.loading === 'yes' && !state.answers.length && (
            <div className="skeleton" role="status" aria-label={m.loading}>
              <span />
              <span />
              <span />
            </div>
          )}
          {state.loading === 'failed' && (
            <div className="failure" role="alert">
              <Icon name="warn" />
              <span>{m.conversationFailed}</span>
              <button type="button" onClick={() => void chat.load()}>
                {m.tryAgain}
              </button>
            </div>
          )}
          {state.answers.map((answer, index) => (
            <Turn
              key={answer.id}
              answer={answer}
              last={index === state.answers.length - 1}
              idle={!running}
              chat={chat}
              onAsk={ask}
              onSource={(source, number) => setShown({ source, number })}
            />
          ))}
        </div>
      </div>
      <p className="hidden" role="status">
        {said}
      </p>
      <div className="foot">
        {!atEnd && (
          <button type="button" className="to-end" aria-label={m.toEnd} title={m.toEnd} onClick={toEnd}>
            <Icon name="down" />
          </button>
        )}
        <Composer draft={chat.id} writing={!!running} onAsk={(text) => ask(text)} onStop={() => void chat.stop()} />
      </div>
      {shown && <Passage {...shown} onClose={() => setShown(null)} />}
    </>
  )
}

function Passage({ source, number, onClose }: { source: Source; number: number; onClose: () => void }) {
  const m = useMessages()
  return (
    <Dialog title={m.sourceTitle(number)} onClose={onClose}>
      <p className="source-name">{source.title ?? source.source}</p>
      {/* what scrolls can be reached by the keyboard */}
      <blockquote className="passage" tabIndex={0}>
        {source.passage}
      </blockquote>
      {source.url ? (
        <a className="document" href={source.url} target="_blank" rel="noopener noreferrer nofollow">
          <Icon name="link" /> {m.openDocument}
        </a>
      ) : (
        <p className="small">{source.source}</p>
      )}
    </Dialog>
  )
}

/** Follow the end while the reader is there; a reader who has gone up is left alone. */
function useFollowing(answers: Answer[]) {
  const view = useRef<HTMLDivElement>(null)
  const following = useRef(true)
  const held = useRef<number | null>(null)
  const [atEnd, setAtEnd] = useState(true)
  const distance = (box: HTMLElement) => box.scrollHeight - box.scrollTop - box.clientHeight

  useEffect(() => {
    const box = view.current
    if (!box) return
    const look = () => {
      following.current = distance(box) <= NEAR_PX
      setAtEnd(following.current)
    }
    const stay = () => {
      if (following.current) box.scrollTop = box.scrollHeight
      else setAtEnd(distance(box) <= NEAR_PX)
    }
    // A phone's keyboard, a turned screen, another zoom.
    const sized = new ResizeObserver(stay)
    sized.observe(box)
    box.addEventListener('scroll', look, { passive: true })
    return () => {
      sized.disconnect()
      box.removeEventListener('scroll', look)
    }
  }, [])
  useLayoutEffect(() => {
    const box = view.current
    if (!box || !answers.length) return
    if (held.current !== null) {
      // Older ones came in above: what was read stays where it was.
      box.scrollTop = box.scrollHeight - held.current
      held.current = null
    } else if (following.current) box.scrollTop = box.scrollHeight
    else setAtEnd(distance(box) <= NEAR_PX)
  }, [answers])
  return {
    view,
    atEnd,
    hold: () => {
      held.current = view.current ? view.current.scrollHeight - view.current.scrollTop : null
      following.current = false
    },
    toEnd: () => {
      following.current = true
      setAtEnd(true)
      const box = view.current
      if (box) box.scrollTop = box.scrollHeight
    },
  }
}

/** What a screen reader is told: that an answer is being written, and the whole of it at its end. Never word by word. */
function useAnnouncement(running: Answer | undefined, last: Answer | undefined): string {
  const m = useMessages()
  const [watched, setWatched] = useState('')
  const id = running?.id
  useEffect(() => {
    if (id) setWatched(id)
  }, [id])
  if (running?.phase === 'waiting') return m.reconnecting
  if (running) return m.thinking
  if (last && last.id === watched && last.phase === 'complete') return `${m.answerComplete} ${last.text}`
  if (last && last.id === watched && last.phase === 'stopped') return m.stopped
  return ''
}

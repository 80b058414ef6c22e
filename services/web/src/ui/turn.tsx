import { memo, useEffect, useRef, useState } from 'react'
import { isDone, type Answer, type Failure, type Source } from '../answer'
import type { Chat } from '../chat'
import { CopyButton, Markdown } from '../markdown'
import { useMessages, type Messages } from '../messages'
import { Dialog } from './dialog'
import { Icon } from './icons'
import { useCountdown } from './sign-in'

interface TurnProps {
  answer: Answer
  last: boolean
  /** Nothing is being written: something else may be asked. */
  idle: boolean
  chat: Chat
  onAsk: (text: string, replaces?: string) => void
  onSource: (source: Source, number: number) => void
}

/** A question and its answer. */
export const Turn = memo(
  function Turn({ answer, last, idle, chat, onAsk, onSource }: TurnProps) {
    const m = useMessages()
    const [editing, setEditing] = useState(false)
    return (
      <article className="turn">
        <div className="question">
          <h2 className="hidden">{m.youAsked}</h2>
          {editing ? (
            <Edit
              text={answer.question}
              onCancel={() => setEditing(false)}
              onSend={(text) => {
                setEditing(false)
                onAsk(text, answer.id)
              }}
            />
          ) : (
            <>
              <p className="bubble">{answer.question}</p>
              <div className="tools">
                <CopyButton text={answer.question} label={m.copy}>
                  <Icon name="copy" />
                </CopyButton>
                <button
                  type="button"
                  className="quiet"
                  aria-label={m.edit}
                  title={m.edit}
                  disabled={!idle}
                  onClick={() => setEditing(true)}
                >
                  <Icon name="pen" />
                </button>
              </div>
            </>
          )}
        </div>
        <div className="answer">
          <h2 className="hidden">{m.answered}</h2>
          <Body answer={answer} onSource={onSource} />
          {isDone(answer) && (
            <>
              {answer.failure && (
                <Failed failure={answer.failure} idle={idle} onAgain={() => chat.again(answer)} />
              )}
              {answer.phase === 'stopped' && <p className="note">{m.stopped}</p>}
              {answer.cutShort && <p className="note">{m.cutShort}</p>}
              <Sources sources={answer.sources} text={answer.text} onSource={onSource} />
              <AnswerTools answer={answer} last={last} idle={idle} chat={chat} />
            </>
          )}
        </div>
      </article>
    )
  },
  (a, b) => a.answer === b.answer && a.last === b.last && a.idle === b.idle && a.chat === b.chat,
)

function Body({ answer, onSource }: { answer: Answer; onSource: TurnProps['onSource'] }) {
  const m = useMessages()
  const open = (number: number) => {
    const source = answer.sources[number - 1]
    if (source) onSource(source, number)
  }
  const state =
    answer.phase === 'waiting' ? m.reconnecting : answer.phase === 'stopping' ? m.stopping : m.thinking
  return (
    <>
      {answer.text && (
        <div className={answer.phase === 'writing' ? 'markdown writing' : 'markdown'}>
          <Markdown text={answer.text} sources={answer.sources.length} onSource={open} />
        </div>
      )}
      {!isDone(answer) && (answer.text === '' || answer.phase !== 'writing') && (
        <p className="thinking">
          <span className="dots" aria-hidden="true">
            <i />
            <i />
            <i />
          </span>
          {state}
        </p>
      )}
    </>
  )
}

/** Those that the answer names come first; where it names none, all of them. */
function Sources({
  sources,
  text,
  onSource,
}: {
  sources: Source[]
  text: string
  onSource: TurnProps['onSource']
}) {
  const m = useMessages()
  if (!sources.length) return null
  const named = new Set([...text.matchAll(/\[(\d{1,2})\]/g)].map((match) => Number(match[1])))
  const numbered = sources.map((source, index) => ({ source, number: index + 1 }))
  const cited = numbered.filter(({ number }) => named.has(number))
  return (
    <div className="sources">
      <h3>{m.sources}</h3>
      <ul>
        {(cited.length ? cited : numbered).map(({ source, number }) => (
          <li key={number}>
            <button type="button" onClick={() => onSource(source, number)}>
              <b>{number}</b> <span>{source.title ?? source.source}</span>
            </button>
          </li>
        ))}
      </ul>
    </div>
  )
}

function AnswerTools({
  answer,
  last,
  idle,
  chat,
}: Pick<TurnProps, 'answer' | 'last' | 'idle' | 'chat'>) {
  const m = useMessages()
  const [why, setWhy] = useState(false)
  const [thanked, setThanked] = useState(false)
  const rate = (rating: 'up' | 'down') => {
    const taken = answer.rating === rating ? null : rating
    void chat.rate(answer, taken, null)
    setThanked(taken === 'up')
    if (taken === 'down') setWhy(true)
  }
  if (!answer.text) return null
  return (
    <div className="tools">
      <CopyButton text={answer.text} label={m.copyAnswer}>
        <Icon name="copy" />
      </CopyButton>
      <button
        type="button"
        className="quiet"
        aria-label={m.good}
        title={m.good}
        aria-pressed={answer.rating === 'up'}
        onClick={() => rate('up')}
      >
        <Icon name="good" />
      </button>
      <button
        type="button"
        className="quiet"
        aria-label={m.bad}
        title={m.bad}
        aria-pressed={answer.rating === 'down'}
        onClick={() => rate('down')}
      >
        <Icon name="bad" />
      </button>
      {last && (
        <button
          type="button"
          className="quiet"
          aria-label={m.regenerate}
          title={m.regenerate}
          disabled={!idle}
          onClick={() => chat.again(answer)}
        >
          <Icon name="again" />
        </button>
      )}
      <span role="status" className="note">
        {thanked ? m.thanks : ''}
      </span>
      {why && (
        <Why
          onClose={() => setWhy(false)}
          onSend={(words) => {
            void chat.rate(answer, 'down', words)
            setWhy(false)
            setThanked(true)
          }}
        />
      )}
    </div>
  )
}

function Why({ onClose, onSend }: { onClose: () => void; onSend: (words: string) => void }) {
  const m = useMessages()
  const [words, setWords] = useState('')
  return (
    <Dialog title={m.badTitle} onClose={onClose} onSubmit={() => onSend(words.trim())}>
      <label>
        {m.badHint}
        <textarea
          rows={4}
          maxLength={2000}
          value={words}
          onChange={(event) => setWords(event.target.value)}
        />
      </label>
      <div className="row end">
        <button type="button" className="quiet" onClick={onClose}>
          {m.cancel}
        </button>
        <button className="primary">{m.badSend}</button>
      </div>
    </Dialog>
  )
}

function Edit({
  text,
  onSend,
  onCancel,
}: {
  text: string
  onSend: (text: string) => void
  onCancel: () => void
}) {
  const m = useMessages()
  const [changed, setChanged] = useState(text)
  const field = useRef<HTMLTextAreaElement>(null)
  useEffect(() => {
    field.current?.focus()
    field.current?.setSelectionRange(text.length, text.length)
  }, [text])
  const send = () => changed.trim() && onSend(changed.trim())
  return (
    <form
      className="edit"
      onSubmit={(event) => {
        event.preventDefault()
        send()
      }}
    >
      <label>
        <span className="hidden">{m.edit}</span>
        <textarea
          ref={field}
          rows={3}
          maxLength={32_000}
          value={changed}
          onChange={(event) => setChanged(event.target.value)}
          onKeyDown={(event) => {
            if (event.key === 'Escape') {
              event.preventDefault()
              onCancel()
            } else if (event.key === 'Enter' && !event.shiftKey && !event.nativeEvent.isComposing) {
              event.preventDefault()
              send()
            }
          }}
        />
      </label>
      <div className="row end">
        <span className="note">{m.editHint}</span>
        <button type="button" className="quiet" onClick={onCancel}>
          {m.cancel}
        </button>
        <button className="primary" disabled={!changed.trim()}>
          {m.send}
        </button>
      </div>
    </form>
  )
}

/** What an error is called here, by what the API calls it. */
export function wordsOf(m: Messages, kind: string): string {
  if (kind.includes('budget') || kind.includes('quota')) return m.errors.budget
  if (kind.startsWith('upstream-')) return m.errors['model-away']
  return m.errors[kind as keyof Messages['errors']] ?? m.errors.internal
}

function Failed({ failure, idle, onAgain }: { failure: Failure; idle: boolean; onAgain: () => void }) {
  const m = useMessages()
  const [left, setLeft] = useCountdown()
  useEffect(() => {
    setLeft(failure.seconds)
  }, [failure])
  return (
    <div className="failure" role="alert">
      <Icon name="warn" />
      <span>
        {wordsOf(m, failure.kind)} {left > 0 ? m.errorAgainIn(left) : ''}
      </span>
      <button type="button" disabled={!idle || left > 0} onClick={onAgain}>
        {m.tryAgain}
      </button>
    </div>
  )
}

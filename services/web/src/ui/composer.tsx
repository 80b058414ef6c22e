import { useEffect, useRef, useState } from 'react'
import { useMessages } from '../messages'
import { kept } from '../store'
import { Icon } from './icons'

const MOST = 32_000 // characters that the API takes

/** Where a question is written. What is written is kept for this tab, by conversation. */
export function Composer({
  draft,
  writing,
  onAsk,
  onStop,
}: {
  /** Under which name the draft is kept. */
  draft: string
  /** An answer is on its way: it can be stopped, and nothing asked. */
  writing: boolean
  onAsk: (text: string) => void
  onStop: () => void
}) {
  const m = useMessages()
  const [text, setText] = useState(kept.read('session', `draft.${draft}`) ?? '')
  const field = useRef<HTMLTextAreaElement>(null)
  const empty = text.trim() === ''

  const change = (value: string) => {
    setText(value)
    kept.write('session', `draft.${draft}`, value)
  }
  const send = () => {
    if (empty || writing) return
    onAsk(text.trim())
    change('')
    field.current?.focus()
  }
  useEffect(() => {
    // A phone's keyboard opens when the person wants it to.
    if (!window.matchMedia('(pointer: coarse)').matches) field.current?.focus()
  }, [])
  return (
    <form
      className="composer"
      onSubmit={(event) => {
        event.preventDefault()
        send()
      }}
    >
      <div className="box">
        <label className="hidden" htmlFor="message">
          {m.message}
        </label>
        <div className="grow" data-text={`${text} `}>
          <textarea
            ref={field}
            id="message"
            rows={1}
            maxLength={MOST}
            placeholder={m.messageHint}
            aria-describedby="message-keys"
            enterKeyHint={window.matchMedia('(pointer: coarse)').matches ? 'enter' : 'send'}
            value={text}
            onChange={(event) => change(event.target.value)}
            onKeyDown={(event) => {
              // The Enter that ends the composing of a character is not for us (229: Safari says it so).
              const composing = event.nativeEvent.isComposing || event.keyCode === 229
              const phone = window.matchMedia('(pointer: coarse)').matches
              if (event.key === 'Enter' && !event.shiftKey && !composing && !phone) {
                event.preventDefault()
                send()
              }
            }}
          />
        </div>
        <span id="message-keys" className="hidden">
          {m.keys}
        </span>
        {writing ? (
          <button type="button" className="send" aria-label={m.stop} title={m.stop} onClick={onStop}>
            <Icon name="stop" />
          </button>
        ) : (
          <button className="send" aria-label={m.send} title={m.send} disabled={empty}>
            <Icon name="up" />
          </button>
        )}
      </div>
      <p className="small">{m.canBeWrong}</p>
    </form>
  )
}

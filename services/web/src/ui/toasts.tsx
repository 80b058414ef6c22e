import { useMessages } from '../messages'
import { Store, useStore } from '../store'
import { Icon } from './icons'

interface Toast {
  id: number
  text: string
  action: { label: string; run: () => void } | null
}

const toasts = new Store<Toast[]>([])
let made = 0

/** Say something beside what goes on, for so many milliseconds; with something to do about it. */
export function say(text: string, milliseconds: number, action: Toast['action'] = null): void {
  const id = ++made
  toasts.set([...toasts.get().slice(-2), { id, text, action }])
  setTimeout(() => hide(id), milliseconds)
}

function hide(id: number): void {
  toasts.set(toasts.get().filter((one) => one.id !== id))
}

export function Toasts() {
  const m = useMessages()
  const shown = useStore(toasts)
  return (
    <div className="toasts" role="status">
      {shown.map(({ id, text, action }) => (
        <div key={id} className="toast">
          <span>{text}</span>
          {action && (
            <button
              type="button"
              onClick={() => {
                action.run()
                hide(id)
              }}
            >
              {action.label}
            </button>
          )}
          <button type="button" className="square" aria-label={m.close} onClick={() => hide(id)}>
            <Icon name="cross" />
          </button>
        </div>
      ))}
    </div>
  )
}

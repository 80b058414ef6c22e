import { useEffect, useRef, type FormEvent, type ReactNode } from 'react'
import { useMessages } from '../messages'
import { Icon } from './icons'

/** A modal box: the browser keeps the focus in it, closes it by Esc, and gives the focus back. */
export function Dialog({
  title,
  children,
  onClose,
  onSubmit,
}: {
  title: string
  children: ReactNode
  onClose: () => void
  onSubmit?: (event: FormEvent) => void
}) {
  const m = useMessages()
  const box = useRef<HTMLDialogElement>(null)
  useEffect(() => {
    const shown = box.current
    const before = document.activeElement as HTMLElement | null
    if (shown && !shown.open) {
      shown.showModal()
      // The browser's choice would be the button that closes: a space in what is typed would press it.
      const field = shown.querySelector<HTMLInputElement | HTMLTextAreaElement>('input, textarea')
      field?.focus()
      field?.select()
    }
    return () => {
      shown?.close()
      before?.focus()
    }
  }, [])
  return (
    <dialog
      ref={box}
      className="dialog"
      aria-label={title}
      onCancel={(event) => {
        event.preventDefault()
        onClose()
      }}
      onClick={(event) => event.target === box.current && onClose()}
    >
      <form
        method="dialog"
        onSubmit={(event) => {
          event.preventDefault()
          onSubmit?.(event)
        }}
      >
        <header>
          <h2>{title}</h2>
          <button type="button" className="quiet square" aria-label={m.close} onClick={onClose}>
            <Icon name="cross" />
          </button>
        </header>
        {children}
      </form>
    </dialog>
  )
}

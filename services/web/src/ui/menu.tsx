import { useEffect, useId, useRef, useState, type ReactNode } from 'react'

/**
 * A button with a menu below or above it: arrows move, Esc closes, and the focus goes back to the button.
 * `children` are elements with a role of menu items.
 */
export function Menu({
  label,
  button,
  className = '',
  above = false,
  children,
}: {
  label: string
  button: ReactNode
  className?: string
  above?: boolean
  children: (close: () => void) => ReactNode
}) {
  const [open, setOpen] = useState(false)
  const id = useId()
  const box = useRef<HTMLDivElement>(null)
  const opener = useRef<HTMLButtonElement>(null)
  const items = () => [...(box.current?.querySelectorAll<HTMLElement>('[role^=menuitem]') ?? [])]

  useEffect(() => {
    if (!open) return
    items()[0]?.focus()
    const away = (event: Event) => {
      const target = event.target as Node
      if (!box.current?.contains(target) && !opener.current?.contains(target)) setOpen(false)
    }
    document.addEventListener('pointerdown', away)
    document.addEventListener('focusin', away)
    return () => {
      document.removeEventListener('pointerdown', away)
      document.removeEventListener('focusin', away)
    }
  }, [open])

  const close = () => {
    setOpen(false)
    opener.current?.focus()
  }
  const move = (event: React.KeyboardEvent) => {
    const all = items()
    const at = all.indexOf(document.activeElement as HTMLElement)
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key]
    if (event.key === 'Escape') {
      event.stopPropagation()
      event.preventDefault()
      close()
    } else if (to !== undefined) {
      event.preventDefault()
      all.at(to % all.length)?.focus()
    }
  }
  return (
    <div className={`menu ${className}`}>
      <button
        ref={opener}
        type="button"
        className="quiet"
        aria-haspopup="menu"
        aria-expanded={open}
        aria-controls={open ? id : undefined}
        aria-label={label}
        title={label}
        onClick={() => setOpen(!open)}
      >
        {button}
      </button>
      {open && (
        // a menu takes the arrows
        <div
          ref={box}
          id={id}
          role="menu"
          aria-label={label}
          className={above ? 'popup above' : 'popup'}
          onKeyDown={move}
        >
          {children(close)}
        </div>
      )}
    </div>
  )
}

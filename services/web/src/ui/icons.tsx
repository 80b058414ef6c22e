/** Drawn on 24 × 24, with the colour of the text. They say nothing: what holds them has a label. */
const PATHS = {
  menu: 'M4 7h16M4 12h16M4 17h10',
  pen: 'M12 20h8M16.5 4.5a2.1 2.1 0 0 1 3 3L8 19l-4 1 1-4z',
  plus: 'M12 5v14M5 12h14',
  search: 'M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM20 20l-4-4',
  dots: 'M5 12h.01M12 12h.01M19 12h.01',
  up: 'M12 19V5M6 11l6-6 6 6',
  down: 'M12 5v14M6 13l6 6 6-6',
  stop: 'M8 8h8v8H8z',
  copy: 'M9 9h10v11H9zM5 15V4h10',
  check: 'M5 12.5l4.5 4.5L19 7.5',
  again: 'M4 12a8 8 0 0 1 14-5.3L20 9M20 4v5h-5M20 12a8 8 0 0 1-14 5.3L4 15M4 20v-5h5',
  good: 'M7 11v9H4v-9zM7 11l4-7a2 2 0 0 1 2 2v4h5.5a2 2 0 0 1 2 2.4l-1.2 6a2 2 0 0 1-2 1.6H7',
  bad: 'M17 13V4h3v9zM17 13l-4 7a2 2 0 0 1-2-2v-4H5.500a2 2 0 0 1-2-2.400l1.200-6a2 2 0 0 1 2-1.600H17',
  cross: 'M6 6l12 12M18 6L6 18',
  user: 'M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.500 20a7.500 7.500 0 0 1 15 0',
  out: 'M14 5H6v14h8M11 12h9M17 8.500l3.500 3.500L17 15.500',
  bin: 'M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10.500 11v5M13.500 11v5',
  book: 'M5 5.500A2 2 0 0 1 7 4h12v14H7a2 2 0 0 0-2 2zM5 20h14',
  link: 'M14 5h5v5M19 5l-8 8M10 6H5v13h13v-5',
  cloud: 'M7 18a4 4 0 0 1-.500-8 6 6 0 0 1 11.300 1.500A3.500 3.500 0 0 1 17.500 18M4 4l16 16',
  warn: 'M12 4l9 16H3zM12 10v4M12 17h.01',
} as const

export function Icon({ name }: { name: keyof typeof PATHS }) {
  return (
    <svg className="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  )
}

export function Logo() {
  return (
    <svg className="logo" viewBox="0 0 32 32" aria-hidden="true" focusable="false">
      <rect width="32" height="32" rx="9" />
      <path d="M21.6 19.9a7 7 0 1 1 0-7.8" />
      <circle cx="22.4" cy="16" r="2.3" />
    </svg>
  )
}

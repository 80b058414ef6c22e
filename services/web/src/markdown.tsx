import { Lexer, type Token, type Tokens } from 'marked'
import { createElement, Fragment, memo, useState, type ReactNode } from 'react'
import { useMessages } from './messages'

/**
 * Markdown as elements. What a model writes can be steered by whoever writes a document, so nothing of it is ever
 * loaded or run: HTML is text, images are links, and links lead to the web or to mail only.
 */
export interface MarkdownProps {
  text: string
  /** How many sources there are: [1] to [count] are references. */
  sources: number
  onSource: (number: number) => void
}

export function Markdown({ text, sources, onSource }: MarkdownProps) {
  const tokens = Lexer.lex(text, { gfm: true })
  const depths = [...new Set(tokens.flatMap((token) => (token.type === 'heading' ? [token.depth as number] : [])))]
  const levels = new Map(depths.sort().map((depth, rank) => [depth, Math.min(rank + 3, 6)]))
  return tokens.map((token, index) => (
    <Block
      // blocks only ever grow at the end
      key={index}
      raw={token.raw}
      token={token}
      level={levels.get((token as Tokens.Heading).depth) ?? 3}
      sources={sources}
      onSource={onSource}
    />
  ))
}

interface BlockProps {
  raw: string
  token: Token
  level: number
  sources: number
  onSource: (number: number) => void
}

/** A paragraph, a list, a table. While an answer grows, only the last one changes. */
const Block = memo(
  function Block({ token, level, sources, onSource }: BlockProps) {
    return block(token, { level, sources, onSource })
  },
  (a, b) =>
    a.raw === b.raw && a.level === b.level && a.sources === b.sources && a.token.type === b.token.type,
)

interface Context {
  /** Inside a link, where no other one may be. */
  linked?: boolean
  level: number
  sources: number
  onSource: (number: number) => void
}

function blocks(tokens: Token[] | undefined, context: Context): ReactNode {
  return tokens?.map((token, index) => <Fragment key={index}>{block(token, context)}</Fragment>)
}

function block(token: Token, context: Context): ReactNode {
  switch (token.type) {
    case 'paragraph':
      return <p>{inline(token.tokens, context)}</p>
    case 'heading':
      return createElement(`h${context.level}`, null, inline(token.tokens, context))
    case 'code':
      return <Code text={token.text} language={/^[\w+#.-]{1,20}/.exec(token.lang ?? '')?.[0] ?? ''} />
    case 'blockquote':
      return <blockquote>{blocks(token.tokens, context)}</blockquote>
    case 'hr':
      return <hr />
    case 'list': {
      const items = (token as Tokens.List).items.map((item, index) => (
        <li key={index} className={item.task ? 'task' : undefined}>
          {blocks(item.tokens, context)}
        </li>
      ))
      const first = Number(token.start)
      return token.ordered ? <ol start={Number.isFinite(first) ? first : 1}>{items}</ol> : <ul>{items}</ul>
    }
    case 'table':
      return <Table token={token as Tokens.Table} context={context} />
    case 'html':
      return <p>{token.text}</p>
    case 'space':
    case 'def':
      return null
    default:
      return inline([token], context)
  }
}

function Table({ token, context }: { token: Tokens.Table; context: Context }) {
  const m = useMessages()
  const cell = (one: Tokens.TableCell) => ({ className: one.align ? `align-${one.align}` : undefined })
  return (
    // what scrolls can be reached by the keyboard
    <div className="table" role="region" aria-label={m.table} tabIndex={0}>
      <table>
        <thead>
          <tr>
            {token.header.map((one, index) => (
              <th key={index} scope="col" {...cell(one)}>
                {inline(one.tokens, context)}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {token.rows.map((row, index) => (
            <tr key={index}>
              {row.map((one, column) => (
                <td key={column} {...cell(one)}>
                  {inline(one.tokens, context)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}

function Code({ text, language }: { text: string; language: string }) {
  const m = useMessages()
  return (
    <figure className="code">
      <figcaption>
        <span>{language || m.codeBlock}</span>
        <CopyButton text={text} label={m.copyCode} />
      </figcaption>
      {/* what scrolls can be reached by the keyboard */}
      <pre tabIndex={0}>
        <code>{text}</code>
      </pre>
    </figure>
  )
}

export function CopyButton({ text, label, children }: { text: string; label: string; children?: ReactNode }) {
  const m = useMessages()
  const [copied, setCopied] = useState(false)
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text)
      setCopied(true)
      setTimeout(() => setCopied(false), 1600)
    } catch {
      // A browser that refuses says so itself.
    }
  }
  return (
    <button type="button" className="quiet" onClick={copy} aria-label={copied ? m.copied : label} title={label}>
      {children ?? (copied ? m.copied : m.copy)}
    </button>
  )
}

function inline(tokens: Token[] | undefined, context: Context): ReactNode {
  return tokens?.map((token, index) => <Fragment key={index}>{span(token, context)}</Fragment>)
}

function span(token: Token, context: Context): ReactNode {
  switch (token.type) {
    case 'text':
      return token.tokens ? inline(token.tokens, context) : cited(decoded(token.text), context)
    case 'escape':
      return token.text
    case 'strong':
      return <strong>{inline(token.tokens, context)}</strong>
    case 'em':
      return <em>{inline(token.tokens, context)}</em>
    case 'del':
      return <del>{inline(token.tokens, context)}</del>
    case 'codespan':
      return <code>{token.text}</code>
    case 'br':
      return <br />
    case 'checkbox':
      return <span aria-hidden="true">{token.checked ? '☑ ' : '☐ '}</span>
    case 'link':
      return link(token.href, inline(token.tokens, { ...context, linked: true, sources: 0 }), context)
    case 'image':
      return link(token.href, decoded(token.text) || token.href, context)
    case 'html':
      // The one tag that models use where Markdown has nothing: a new line in a cell.
      return /^<br\s*\/?>$/i.test(token.text) ? <br /> : token.text
    default:
      return token.raw
  }
}

function link(href: string, children: ReactNode, { linked }: Context): ReactNode {
  return safe(href) && !linked ? (
    <a href={href} target="_blank" rel="noopener noreferrer nofollow">
      {children}
    </a>
  ) : (
    children
  )
}

/** Whether an address may be opened: complete, and of the web or of mail. */
export function safe(href: string): boolean {
  try {
    return ['https:', 'http:', 'mailto:'].includes(new URL(href).protocol)
  } catch {
    return false // without a scheme it would lead into this page
  }
}

/** Text with its references [n] as buttons. */
function cited(text: string, { sources, onSource }: Context): ReactNode {
  if (!sources || !text.includes('[')) return text
  return text.split(/(\[\d{1,2}\])/).map((part, index) => {
    const number = Number(/^\[(\d{1,2})\]$/.exec(part)?.[1])
    if (!number || number > sources) return part
    return <Reference key={index} number={number} onSource={onSource} />
  })
}

function Reference({ number, onSource }: { number: number; onSource: (number: number) => void }) {
  const m = useMessages()
  return (
    <button type="button" className="reference" onClick={() => onSource(number)} aria-label={m.openSource(number)}>
      {number}
    </button>
  )
}

const NAMED: Record<string, string> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00A0' }

/** Text without the entities that Markdown allows in it: those of HTML's own signs, and numbers. */
function decoded(text: string): string {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w+));/gi, (whole, decimal, hex, name) => {
    if (name) return NAMED[name.toLowerCase()] ?? whole
    const point = decimal ? Number(decimal) : Number.parseInt(hex, 16)
    return point > 0 && point <= 0x10ffff && !(point >= 0xd800 && point < 0xe000)
      ? String.fromCodePoint(point)
      : '\uFFFD'
  })
}

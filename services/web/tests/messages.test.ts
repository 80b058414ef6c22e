import { describe, expect, it } from 'vitest'
import { LANGUAGES } from '../src/messages'

/** Every text by its path; of a function, what it says of 1 and of 5. */
function texts(value: unknown, path = ''): [string, string][] {
  if (typeof value === 'string') return [[path, value]]
  if (typeof value === 'function') return [[path, `${value(1)} | ${value(5)}`]]
  return Object.entries(value as object).flatMap(([key, inner]) => texts(inner, `${path}.${key}`))
}

const [pt, en] = [texts(LANGUAGES['pt-BR'].messages), texts(LANGUAGES.en.messages)]
// Said alike in both.
const ALIKE = new Set(['.product'])

describe('messages', () => {
  it('are complete in both languages', () => {
    expect(pt.map(([path]) => path)).toEqual(en.map(([path]) => path))
    for (const [path, text] of [...pt, ...en]) expect(text.trim(), path).not.toBe('')
  })

  it('are translated, not copied', () => {
    const english = new Map(en)
    for (const [path, text] of pt) if (!ALIKE.has(path)) expect(text, path).not.toBe(english.get(path))
  })

  it('count', () => {
    expect(LANGUAGES['pt-BR'].messages.newCodeIn(1)).toContain('1 segundo')
    expect(LANGUAGES['pt-BR'].messages.newCodeIn(2)).toContain('2 segundos')
    expect(LANGUAGES.en.messages.newCodeIn(1)).toContain('1 second')
    expect(LANGUAGES.en.messages.newCodeIn(2)).toContain('2 seconds')
  })
})

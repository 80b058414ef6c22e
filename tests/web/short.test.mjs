// Sign in by code, ask, lose the connection, stop, sign out; and axe, and the page's own policy.
import assert from 'node:assert/strict'
import test, { after, before } from 'node:test'
import { asked, inspect, launch, line, model, open, shot, signIn } from './browser.mjs'

let browser
const way = line()
before(async () => {
  await way.listen()
  browser = await launch()
})
after(async () => {
  await model(null)
  await browser?.close()
  way.close()
})

test('a person signs in, asks, loses the connection and reads on, stops, and signs out', async () => {
  const { page, context, problems } = await open(browser)
  await signIn(page, 'short@example.com')
  await shot(page, 'welcome')
  assert.deepEqual(await inspect(page), [])

  // The suggestion is answered from the documents, with a source that opens.
  await page.getByRole('button', { name: 'How long is the warranty?' }).click()
  await page.locator('.markdown:not(.writing)').getByText('two years').waitFor()
  await page.locator('.reference').first().click()
  const passage = page.locator('dialog.dialog')
  await passage.getByText('Every device has a warranty').waitFor()
  await shot(page, 'source')
  await page.keyboard.press('Escape')
  await passage.waitFor({ state: 'detached' })

  // A slow answer, whose connection is cut twice: nothing is missing, nothing twice, and the model was asked once.
  const words = Array.from({ length: 90 }, (_, at) => `w${at}`).join(' ')
  await model({ kind: 'slow', first: 0.1, delay: 0.04, text: words })
  const before = await asked()
  await page.locator('#message').fill('Count')
  await page.keyboard.press('Enter')
  const answer = page.locator('.turn').nth(1).locator('.markdown')
  await answer.getByText('w9', { exact: false }).waitFor()
  way.cut()
  await answer.getByText('w30', { exact: false }).waitFor()
  way.shut(true)
  await page.getByText('Connection lost').first().waitFor()
  way.shut(false)
  await page.locator('.turn').nth(1).locator('.tools').nth(1).waitFor()
  assert.equal((await answer.innerText()).trim(), words)
  assert.equal(await asked(), before + 1)

  // Stop: the text so far stays, at the server too.
  await page.locator('#message').fill('Count again')
  await page.keyboard.press('Enter')
  await page.locator('.turn').nth(2).locator('.markdown').getByText('w5', { exact: false }).waitFor()
  await page.keyboard.press('Escape')
  await page.locator('.turn').nth(2).getByText('Stopped.').waitFor()
  await page.reload()
  const kept = page.locator('.turn').nth(2)
  await kept.getByText('Stopped.').waitFor()
  assert.ok(!(await kept.locator('.markdown').innerText()).includes('w89'))
  assert.deepEqual(await inspect(page), [])

  await page.getByRole('button', { name: /Account and settings/ }).click()
  const ended = page.waitForResponse((response) => /\/logout\?scope=local$/.test(response.url()))
  await page.getByRole('menuitem', { name: 'Sign out', exact: true }).click()
  assert.equal((await ended).status(), 204) // the server has ended it, not the page alone
  await page.getByRole('heading', { name: 'Sign in' }).waitFor()
  assert.deepEqual(await page.evaluate(() => window.violations), [])
  assert.deepEqual(problems, [])
  await context.close()
})

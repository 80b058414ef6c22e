// A person at the droplet's page who asks one question after the other, until their input ends: every answer is whole.
// WEB_URL and SUPABASE_URL as browsers see them; HTTPS_PORT is where the page's port 443 is on this machine.
import assert from 'node:assert/strict'
import { launch, open, shot, signIn, wholeConversation } from '../web/browser.mjs'

// The stand-in of the model writes for 15 seconds, less than a container may go on for (SHUTDOWN_SECONDS).
const QUESTION = 'Count [stand-in: slow; first=0.1; delay=0.15; chunks=100]'

let asking = true
process.stdin.on('end', () => (asking = false)).resume()

const browser = await launch([`--host-resolver-rules=MAP *.cimt.localhost 127.0.0.1:${process.env.HTTPS_PORT}`])
// Certificates are the smoke test's business; the browser does not know the local authority.
const { page, problems } = await open(browser, { ignoreHTTPSErrors: true })
page.setDefaultTimeout(180_000) // an emulated droplet in the middle of a release
try {
  await signIn(page, 'reader@example.com')
  console.log('signed in')
  const answers = page.locator('.turn .markdown:not(.writing)')
  for (let asked = 1; asking || asked === 1; asked += 1) {
    await page.locator('#message').fill(QUESTION)
    await page.keyboard.press('Enter')
    await answers.nth(asked - 1).or(page.locator('.failure')).first().waitFor()
    await page.locator('.turn').nth(asked - 1).locator('.tools').nth(1).or(page.locator('.failure')).first().waitFor()
    assert.equal(await page.locator('.failure').count(), 0, await page.locator('.turn').last().innerText())
    console.log(`answered ${asked}`)
  }
  const read = await answers.allInnerTexts()
  assert.equal(await page.locator('.turn .note:not([role])').count(), 0, 'an answer was cut short')
  await page.reload()
  await wholeConversation(page, read.length)
  await answers.nth(read.length - 1).waitFor()
  assert.deepEqual(await answers.allInnerTexts(), read, 'what was read is not what is kept')
  assert.deepEqual(await page.evaluate(() => window.violations), [])
  assert.deepEqual(problems, [])
} finally {
  await shot(page, 'droplet')
  await browser.close()
}

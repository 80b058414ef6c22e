// What the tests of the page share: a real Chromium, a way into the inbox, and a line to the API that can be cut.
import { existsSync, mkdirSync, mkdtempSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const require = createRequire(new URL('../../services/web/package.json', import.meta.url))
const { chromium } = require('playwright-core')
const axe = readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8')
const { WEB_URL, API_URL, SUPABASE_URL, OPENAI_URL, CUT_PORT, SHOTS } = process.env
export { WEB_URL }

const NAMES = ['chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable']
const program = NAMES.flatMap((name) => process.env.PATH.split(':').map((folder) => join(folder, name))).find(existsSync)
const FLAGS = [
  '--no-sandbox', // root, and whom user namespaces are refused, cannot start it otherwise; it sees our own page alone
  '--disable-gpu',
  '--disable-quic',
  '--disable-dev-shm-usage',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

export async function launch(flags = []) {
  if (!program) throw new Error(`no Chromium: none of ${NAMES.join(', ')}. Next: local/packages.sh chromium`)
  const home = mkdtempSync(join(tmpdir(), 'cimt-chromium-'))
  return chromium.launch({ executablePath: program, args: [...FLAGS, ...flags], env: { ...process.env, HOME: home } })
}

/** A window of its own person: {page, context, problems}. `problems`: what the page's console and its policy complained of. */
export async function open(browser, options = {}) {
  const context = await browser.newContext({ locale: 'en-GB', viewport: { width: 1280, height: 800 }, ...options })
  await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: WEB_URL })
  const page = await context.newPage()
  const problems = []
  await page.addInitScript(() => {
    window.violations = []
    document.addEventListener('securitypolicyviolation', (event) =>
      window.violations.push(`${event.violatedDirective} ${event.blockedURI}`),
    )
  })
  page.on('pageerror', (error) => problems.push(String(error)))
  page.on('console', (message) => {
    if (message.type() === 'error' && !/ERR_|Failed to load resource/.test(message.text())) problems.push(message.text())
  })
  page.setDefaultTimeout(30_000)
  return { page, context, problems }
}

const inbox = async (to) => (await fetch(`${SUPABASE_URL}/inbox.json?to=${encodeURIComponent(to)}`)).json()

/** The newest mail to an address, {token, page}, once there are more than so many. */
export async function mail(to, before = 0) {
  for (const until = Date.now() + 20_000; Date.now() < until; ) {
    const mails = await inbox(to)
    if (mails.length > before) return mails[0]
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  throw new Error(`no mail to ${to}`)
}

export async function signIn(page, email) {
  await page.goto(WEB_URL)
  const before = (await inbox(email)).length
  await page.locator('input[name=email]').fill(email)
  await page.locator('button.primary').click()
  await page.locator('input[name=code]').fill((await mail(email, before)).token)
  await page.locator('button.primary').click()
  await page.locator('#message').waitFor()
}

/** The open conversation from its first turn on: the page shows the newest of them, and earlier ones when asked. */
export async function wholeConversation(page, turns) {
  const shown = page.locator('.turn')
  const earlier = page.locator('button.older')
  for (;;) {
    await shown.nth(turns - 1).or(earlier).first().waitFor()
    const before = await shown.count()
    if (before >= turns) return
    await earlier.click()
    await shown.nth(before).waitFor()
  }
}

/** How the model answers from now on; see `python -m local.openai --help`. */
export async function model(behaviour) {
  const reset = await fetch(`${OPENAI_URL}/stand-in/behaviour`, { method: 'DELETE' })
  if (!reset.ok) throw new Error(await reset.text())
  if (!behaviour) return
  const body = JSON.stringify({ paths: ['/v1/chat/completions'], ...behaviour })
  const done = await fetch(`${OPENAI_URL}/stand-in/behaviour`, { method: 'PUT', body })
  if (!done.ok) throw new Error(await done.text())
}

export async function asked() {
  const { paths } = await (await fetch(`${OPENAI_URL}/stand-in/calls`)).json()
  return paths['/v1/chat/completions'] ?? 0
}

/** The way from the page to the API: what goes through it can be cut, and the door shut. */
export function line() {
  const to = new URL(API_URL)
  const open = new Set()
  let shut = false
  const server = net.createServer((near) => {
    if (shut) return near.destroy()
    const far = net.connect(Number(to.port), to.hostname)
    for (const socket of [near, far]) {
      open.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => {
        open.delete(socket)
        near.destroy()
        far.destroy()
      })
    }
    near.pipe(far).pipe(near)
  })
  return {
    listen: () => new Promise((resolve) => server.listen(Number(CUT_PORT), '127.0.0.1', resolve)),
    cut() {
      for (const socket of open) socket.destroy()
    },
    shut(value) {
      shut = value
      if (value) this.cut()
    },
    close() {
      this.cut()
      server.close()
    },
  }
}

/** What axe finds wrong with the page as it is. The page's policy lets no script in, so it comes by the debugger. */
export async function inspect(page) {
  const debug = await page.context().newCDPSession(page)
  await debug.send('Runtime.evaluate', { expression: axe })
  const run = 'axe.run(document, { resultTypes: ["violations"] }).then((found) => JSON.stringify(found.violations.map((one) => [one.id, one.nodes.map((node) => node.html.slice(0, 160) + " " + [...node.any, ...node.all, ...node.none].map((one) => one.message).join(" "))])))'
  const { result } = await debug.send('Runtime.evaluate', { expression: run, awaitPromise: true })
  await debug.detach()
  return JSON.parse(result.value)
}

export async function shot(page, name) {
  mkdirSync(SHOTS, { recursive: true })
  await page.screenshot({ path: join(SHOTS, `${name}.png`), animations: 'disabled' })
}

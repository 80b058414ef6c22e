// @vitest-environment node
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { afterAll, beforeAll, expect, it } from 'vitest'

/** Of all that the first visit loads, packed. */
const MOST = 120 * 1024
const root = join(import.meta.dirname, '..')
const folder = mkdtempSync(join(tmpdir(), 'cimt-budget-'))

beforeAll(() => {
  // In a process of its own: here React would be the one for tests.
  const vite = join(root, '../../node_modules/vite/bin/vite.js')
  const options = ['build', '--logLevel', 'warn', '--outDir', folder, '--emptyOutDir']
  execFileSync(process.execPath, [vite, ...options], { cwd: root, env: { ...process.env, NODE_ENV: 'production' } })
}, 120_000)
afterAll(() => rmSync(folder, { recursive: true }))

it('is one program and one style, within the budget', () => {
  const assets = readdirSync(join(folder, 'assets'))
  expect(assets.filter((name) => name.endsWith('.js'))).toHaveLength(1)
  expect(assets.filter((name) => name.endsWith('.css'))).toHaveLength(1)
  const files = ['index.html', ...assets.map((name) => join('assets', name))]
  const size = files.reduce((sum, name) => sum + gzipSync(readFileSync(join(folder, name)), { level: 9 }).length, 0)
  expect(size).toBeLessThanOrEqual(MOST)
})

it('has nothing inline, which its policy would refuse', () => {
  const page = readFileSync(join(folder, 'index.html'), 'utf8')
  expect(page).not.toMatch(/<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=/)
  expect(page).toMatch(/src="\/assets\/[\w-]+-[\w-]{8}\.js"/)
})

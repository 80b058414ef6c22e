// The AI SDK's chat, versions 5 to 7, OpenAI's SDK and fetch-event-source against a running API: as their users have
// them, without glue. API, TOKEN: where, and who. Ends with an error where something is not as a user would want it.
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'

import { fetchEventSource } from '@microsoft/fetch-event-source'
import * as ai5 from 'ai5'
import * as ai6 from 'ai6'
import * as ai7 from 'ai7'
import OpenAI from 'openai'

const { API, TOKEN } = process.env
const headers = { Authorization: `Bearer ${TOKEN}` }
const text = (message) => message.parts.map((part) => part.text ?? '').join('')
const soon = async (what, until) => {
  for (let left = 300; !until(); left--) {
    assert(left, what)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

// The snippet of useChat in docs/clients.md.
const [, snippet] = readFileSync('docs/clients.md', 'utf8').match(/```tsx\n([^]*?)```/)
const render = new Function('useChat', 'DefaultChatTransport', 'API', 'accessToken', 'id', `${snippet}return { stopWriting }`)

// What useChat keeps in React.
class State {
  status = 'ready'
  error = undefined
  messages = []
  pushMessage = (message) => (this.messages = [...this.messages, message])
  popMessage = () => (this.messages = this.messages.slice(0, -1))
  replaceMessage = (at, message) => (this.messages = this.messages.with(at, message))
  snapshot = (value) => structuredClone(value)
}

for (const [version, { AbstractChat, DefaultChatTransport }] of Object.entries({ ai5, ai6, ai7 })) {
  class Chat extends AbstractChat {
    constructor(options) {
      super({ ...options, state: new State() })
    }
  }
  const opened = (id) => {
    let chat
    const useChat = (options) => (chat = new Chat(options))
    return { ...render(useChat, DefaultChatTransport, API, async () => TOKEN, id), chat }
  }
  const { chat } = opened(`chat-${randomUUID()}`) // the SDK's own ids are no UUIDs
  const fine = (what) => assert.deepEqual([chat.status, chat.error], ['ready', undefined], `${version}: ${what}`)

  await chat.sendMessage({ text: 'How long is the warranty?' })
  fine('an answer')
  const first = chat.messages.at(-1)
  assert(text(first), version)
  await chat.regenerate()
  fine('the same asked again')
  assert.equal(chat.messages.length, 2)
  assert.notEqual(chat.messages.at(-1).id, first.id)
  await chat.sendMessage({ text: 'And for batteries?', messageId: chat.messages[0].id })
  fine('a question written anew')
  assert.equal(chat.messages.length, 2)
  await chat.resumeStream()
  fine('nothing to resume')

  const endless = chat.sendMessage({ text: '[stand-in: endless; delay=0.05] Go on' })
  await soon('text comes', () => text(chat.messages.at(-1)) && chat.messages.length === 4)
  await chat.stop()
  await endless
  fine('stopped')
  const { chat: again, stopWriting } = opened(chat.id) // after a reload
  const resumed = again.resumeStream()
  await soon('it is resumed', () => again.messages.length && text(again.messages.at(-1)))
  await stopWriting()
  await resumed
  assert.equal((await fetch(`${API}/chat/${chat.id}/stream`, { headers })).status, 204)
  assert.deepEqual([again.status, again.error], ['ready', undefined], `${version}: resumed`)
  assert(text(again.messages.at(-1)).startsWith(text(chat.messages.at(-1))), version)

  await chat.sendMessage({ text: '[stand-in: failing; status=400] Why?' })
  assert.equal(chat.status, 'error')
  assert.equal(chat.error.message, "The model's service refused the request", version)
}

const openai = new OpenAI({ baseURL: `${API}/v1`, apiKey: TOKEN, maxRetries: 0 })
const messages = [{ role: 'user', content: 'How long is the warranty?' }]
let said = ''
for await (const chunk of await openai.chat.completions.create({ model: 'cimt', messages, stream: true })) {
  said += chunk.choices[0].delta.content ?? ''
}
const whole = await openai.chat.completions.create({ model: 'cimt', messages })
assert.equal(said, whole.choices[0].message.content)
await assert.rejects(openai.chat.completions.create({ model: 'cimt', messages, temperature: 0.2 }), {
  status: 400,
  param: 'temperature',
})

// fetch-event-source comes back by itself when a connection breaks, with Last-Event-ID. It was made for browsers.
globalThis.window = globalThis
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} }
async function broken(more, got) {
  const message = '[stand-in: slow; delay=0.05; chunks=60] How long is the warranty?'
  let connections = 0
  const breaking = () =>
    new TransformStream({
      transform: (piece, out) => (got.text ? out.error(new Error('the connection broke')) : out.enqueue(piece)),
    })
  await fetchEventSource(`${API}/chat`, {
    method: 'POST',
    headers: { ...headers, 'Content-Type': 'application/json' },
    body: JSON.stringify({ message, stream: true, ...more }),
    openWhenHidden: true,
    fetch: async (...request) => {
      const response = await fetch(...request)
      return connections++ ? response : new Response(response.body.pipeThrough(breaking()), response)
    },
    onmessage: ({ data }) => (got.text += data === '[DONE]' ? '' : (JSON.parse(data).choices[0].delta.content ?? '')),
    onerror: (error) => {
      if (connections > 1) throw error
      return 1
    },
  })
  assert.equal(connections, 2)
}
const id = randomUUID()
const resumed = { text: '' }
await broken({ id }, resumed)
const answer = await (await fetch(`${API}/chat/${id}`, { headers })).json()
assert.equal(resumed.text, answer.choices[0].message.content)
const alone = { text: '' } // without an id: refused, so that no other answer is spliced to the first
await assert.rejects(broken({}, alone), /text\/event-stream/)
assert(alone.text && resumed.text.startsWith(alone.text) && alone.text !== resumed.text)

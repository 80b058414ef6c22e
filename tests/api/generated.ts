// A client that openapi-typescript made the types of: `tsc --strict` judges it, and it asks the API for real.
import createClient from 'openapi-fetch'
import type { components, paths } from './document.js'

type Chunk = components['schemas']['CompletionChunk']
type Completion = components['schemas']['Completion']

const api = createClient<paths>({
  baseUrl: process.env.API!,
  headers: { Authorization: `Bearer ${process.env.TOKEN}` },
})

const { data, error } = await api.POST('/chat', { body: { message: 'How long is the warranty?' } })
if (error) throw new Error(typeof error === 'string' ? error : error.title)
const asked = data as Completion // and not as events, which have the same address
const answer: string = asked.choices[0]!.message.content
const source: string | undefined = asked.cimt.sources[0]?.source

const path = { answer_id: asked.cimt.answer_id }
await api.PUT('/chat/{answer_id}/feedback', { params: { path }, body: { rating: 'up' } })
const conversation_id = asked.cimt.conversation_id
const kept = await api.GET('/conversations/{conversation_id}', { params: { path: { conversation_id } } })
if (kept.data?.items[0]?.answer !== answer || kept.data.items[0].rating !== 'up') throw new Error('it is not kept')

const messages: components['schemas']['CompletionRequest']['messages'] = [{ role: 'user', content: 'And in days?' }]
const streamed = await api.POST('/v1/chat/completions', {
  body: { model: 'cimt', messages, stream: true },
  parseAs: 'text',
})
const lines = (streamed.data as unknown as string).split('\n').filter((line) => line.startsWith('data: {'))
const text = lines.map((line) => (JSON.parse(line.slice(6)) as Chunk).choices[0]!.delta.content ?? '').join('')

const refused = await api.POST('/v1/chat/completions', { body: { model: 'gpt-2', messages } })
console.log(JSON.stringify({ answer, source, text, refused: refused.error?.error.code }))

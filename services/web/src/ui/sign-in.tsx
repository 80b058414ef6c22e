import { useEffect, useRef, useState, type FormEvent } from 'react'
import { LANGUAGES, choose, language, useMessages, type Language } from '../messages'
import { go } from '../router'
import type { Refusal, SignIn } from '../session'
import { kept, useStore } from '../store'
import { Centre } from './app'

/** Supabase sends one mail per address and minute (`max_frequency`). */
const BETWEEN_MAILS = 60

export function SignInPage({ signIn, lost }: { signIn: SignIn; lost: boolean }) {
  const m = useMessages()
  const [email, setEmail] = useState(kept.read('session', 'email') ?? '')
  const [sentTo, setSentTo] = useState('')
  const [refusal, setRefusal] = useState<Refusal | null>(null)
  const [busy, setBusy] = useState(false)
  const [wait, setWait] = useCountdown()
  const chosen = useStore(language)

  const send = async () => {
    setBusy(true)
    setRefusal(null)
    const to = email.trim()
    kept.write('session', 'email', to)
    const refused = await signIn.sendMail(to, chosen)
    setBusy(false)
    setRefusal(refused)
    if (!refused || refused.error === 'mail-too-soon') {
      setWait(refused ? refused.seconds || BETWEEN_MAILS : BETWEEN_MAILS)
      setSentTo(to)
    }
    return !refused
  }
  const submit = (event: FormEvent) => {
    event.preventDefault()
    void send()
  }

  if (sentTo) {
    return (
      <CodeForm
        signIn={signIn}
        email={sentTo}
        first={refusal}
        wait={wait}
        again={send}
        back={() => {
          setSentTo('')
          setRefusal(null)
        }}
      />
    )
  }
  return (
    <Centre>
      <form className="card" onSubmit={submit}>
        <h1>{m.signInTitle}</h1>
        <p>{lost ? m.draftKept : m.signInIntro}</p>
        <label>
          {m.email}
          <input
            type="email"
            name="email"
            autoComplete="email"
            inputMode="email"
            required
            // the one field of the page
            autoFocus
            value={email}
            onChange={(event) => setEmail(event.target.value)}
          />
        </label>
        <Refused refusal={refusal} />
        <button className="primary" disabled={busy}>
          {busy ? m.sending : m.sendCode}
        </button>
      </form>
      <Languages />
    </Centre>
  )
}

interface CodeFormProps {
  signIn: SignIn
  email: string
  first: Refusal | null
  wait: number
  again: () => Promise<boolean>
  back: () => void
}

function CodeForm({ signIn, email, first, wait, again, back }: CodeFormProps) {
  const m = useMessages()
  const [code, setCode] = useState('')
  const [busy, setBusy] = useState(false)
  const [refusal, setRefusal] = useState<Refusal | null>(first)
  const [renewed, setRenewed] = useState(false)
  const field = useRef<HTMLInputElement>(null)

  const confirm = async (event: FormEvent) => {
    event.preventDefault()
    setBusy(true)
    setRefusal(null)
    const refused = await signIn.byCode(email, code.replace(/\D/g, ''))
    setBusy(false)
    setRefusal(refused)
    if (refused) field.current?.select()
  }
  const renew = async () => {
    setRefusal(null)
    setRenewed(await again())
    setCode('')
    field.current?.focus()
  }
  return (
    <Centre>
      <form className="card" onSubmit={confirm}>
        <h1>{m.codeTitle}</h1>
        <p>{m.codeSent(email)}</p>
        <label>
          {m.code}
          <input
            ref={field}
            className="code-field"
            name="code"
            autoComplete="one-time-code"
            inputMode="numeric"
            pattern="[0-9 \-]{6,12}"
            maxLength={12}
            required
            // what the person came for
            autoFocus
            value={code}
            onChange={(event) => setCode(event.target.value)}
          />
        </label>
        <Refused refusal={refusal} />
        <p role="status" className="note">
          {renewed && !refusal ? m.newCodeSent : ''}
        </p>
        <button className="primary" disabled={busy}>
          {busy ? m.checking : m.codeConfirm}
        </button>
        <div className="row">
          <button type="button" className="quiet" disabled={wait > 0} onClick={renew}>
            {wait > 0 ? m.newCodeIn(wait) : m.newCode}
          </button>
          <button type="button" className="quiet" onClick={back}>
            {m.otherAddress}
          </button>
        </div>
      </form>
    </Centre>
  )
}

/** Where the link of a mail leads. A person presses the button; a program that looks at links does not. */
export function LinkPage({
  signIn,
  tokenHash,
  onDone,
}: {
  signIn: SignIn
  tokenHash: string
  onDone: () => void
}) {
  const m = useMessages()
  const [busy, setBusy] = useState(false)
  const [refusal, setRefusal] = useState<Refusal | null>(null)
  const confirm = async () => {
    setBusy(true)
    const refused = await signIn.byLink(tokenHash)
    setBusy(false)
    if (refused) setRefusal(refused)
    else onDone()
  }
  return (
    <Centre>
      <div className="card">
        <h1>{m.linkTitle}</h1>
        <p>{refusal ? '' : m.linkIntro}</p>
        <Refused refusal={refusal} />
        {refusal && refusal.error === 'link-used' ? (
          <button type="button" className="primary" onClick={() => go('/', true)}>
            {m.newCode}
          </button>
        ) : (
          // the one thing to do here
          <button type="button" className="primary" autoFocus disabled={busy} onClick={confirm}>
            {busy ? m.checking : m.linkConfirm}
          </button>
        )}
      </div>
      <Languages />
    </Centre>
  )
}

function Refused({ refusal }: { refusal: Refusal | null }) {
  const m = useMessages()
  return (
    <p role="alert" className="refused">
      {refusal ? m.signInErrors[refusal.error] : ''}
    </p>
  )
}

function Languages() {
  const m = useMessages()
  const chosen = useStore(language)
  return (
    <fieldset className="languages">
      <legend className="hidden">{m.language}</legend>
      {(Object.keys(LANGUAGES) as Language[]).map((one) => (
        <button
          key={one}
          type="button"
          className="quiet"
          lang={one}
          aria-pressed={one === chosen}
          onClick={() => choose(one)}
        >
          {LANGUAGES[one].name}
        </button>
      ))}
    </fieldset>
  )
}

/** Seconds that count down to 0, by the clock: a tab that slept is not behind. */
export function useCountdown(): [number, (seconds: number) => void] {
  const [until, setUntil] = useState(0)
  const [left, setLeft] = useState(0)
  useEffect(() => {
    if (!until) return
    const look = () => {
      const seconds = Math.max(0, Math.ceil((until - Date.now()) / 1000))
      setLeft(seconds)
      if (!seconds) clearInterval(timer)
    }
    const timer = setInterval(look, 500)
    look()
    return () => clearInterval(timer)
  }, [until])
  return [left, (seconds) => setUntil(Date.now() + seconds * 1000)]
}

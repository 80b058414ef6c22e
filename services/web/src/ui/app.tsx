import type { Session } from '@supabase/auth-js'
import { useEffect, useMemo, useRef, useState, type ReactNode } from 'react'
import { Api } from '../api'
import { type Config, readConfig } from '../config'
import { language, useMessages } from '../messages'
import { go, place } from '../router'
import { SignIn } from '../session'
import { useStore } from '../store'
import { Workspace } from '../workspace'
import { Desk } from './desk'
import { Logo } from './icons'
import { LinkPage, SignInPage } from './sign-in'

const config = readConfig()

export function App() {
  const chosen = useStore(language)
  useEffect(() => {
    document.documentElement.lang = chosen
  }, [chosen])
  return config ? <Configured config={config} /> : <NotConfigured />
}

function NotConfigured() {
  const m = useMessages()
  return <Centre>{m.notConfigured}</Centre>
}

/** One box in the middle, with the product's sign above it. */
export function Centre({ children }: { children: ReactNode }) {
  const m = useMessages()
  return (
    <main className="centre">
      <div className="brand">
        <Logo />
        <span>{m.product}</span>
      </div>
      {children}
    </main>
  )
}

function Configured({ config }: { config: Config }) {
  const m = useMessages()
  const signIn = useMemo(() => new SignIn(config), [config])
  const [session, setSession] = useState<Session | null | undefined>(undefined)
  const leaving = useRef(false)
  const wasIn = useRef(false)
  const at = useStore(place)
  useEffect(() => signIn.watch(setSession), [signIn])
  const userId = session?.user.id
  const workspace = useWorkspace(config, signIn, userId)
  useEffect(() => {
    if (userId) wasIn.current = true
  }, [userId])

  if (session === undefined) return <Centre>{m.loading}</Centre>
  if (at.page === 'link') {
    return <LinkPage signIn={signIn} tokenHash={at.tokenHash} onDone={() => go('/', true)} />
  }
  if (!session || !workspace) return <SignInPage signIn={signIn} lost={wasIn.current && !leaving.current} />
  const signOut = (everywhere: boolean) => {
    leaving.current = true
    workspace.close()
    go('/', true)
    void signIn.signOut(everywhere)
  }
  return <Desk workspace={workspace} email={session.user.email ?? ''} onSignOut={signOut} />
}

/** The workspace of who is signed in. Another person gets another one; a new token of the same person changes nothing. */
function useWorkspace(config: Config, signIn: SignIn, userId: string | undefined): Workspace | null {
  const [workspace, setWorkspace] = useState<Workspace | null>(null)
  useEffect(() => {
    if (!userId) return
    const made = new Workspace(new Api(config.apiUrl, (anew) => signIn.token(anew)))
    setWorkspace(made)
    return () => {
      made.close()
      setWorkspace(null)
    }
  }, [config, signIn, userId])
  return workspace
}

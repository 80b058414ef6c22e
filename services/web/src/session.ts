import { AuthClient, type AuthError, type Session } from '@supabase/auth-js'
import type { Config } from './config'

export type SignInError =
  | 'code-wrong'
  | 'link-used'
  | 'mail-too-soon'
  | 'too-many-requests'
  | 'mail-not-sent'
  | 'address-invalid'
  | 'not-invited'
  | 'unreachable'
  | 'unknown'

export interface Refusal {
  error: SignInError
  /** Until another mail may be asked for; 0 where nobody said so. */
  seconds: number
}

/** Who is signed in, and the ways to become it. Keeps the session in localStorage, shared by all tabs. */
export class SignIn {
  readonly #auth: InstanceType<typeof AuthClient>
  readonly #signUp: boolean

  constructor(config: Config) {
    this.#signUp = config.signUp === 'open'
    this.#auth = new AuthClient({
      url: `${config.supabaseUrl.replace(/\/+$/, '')}/auth/v1`,
      headers: { apikey: config.publishableKey },
      storageKey: 'cimt.session',
      // Links lead to a button of ours, which a mail scanner does not press: nothing is taken from the address.
      detectSessionInUrl: false,
      persistSession: true,
      autoRefreshToken: true,
    })
  }

  /** Tell the session now and at each change; returns what ends it. */
  watch(tell: (session: Session | null) => void): () => void {
    const { data } = this.#auth.onAuthStateChange((_, session) => tell(session))
    return () => data.subscription.unsubscribe()
  }

  /** Have a mail sent with a code and a link. */
  async sendMail(email: string, language: string): Promise<Refusal | null> {
    const { error } = await this.#auth.signInWithOtp({
      email,
      options: { shouldCreateUser: this.#signUp, data: { language } },
    })
    return error && refusalOf(error)
  }

  async byCode(email: string, token: string): Promise<Refusal | null> {
    const { error } = await this.#auth.verifyOtp({ email, token, type: 'email' })
    return error && refusalOf(error)
  }

  async byLink(tokenHash: string): Promise<Refusal | null> {
    const { error } = await this.#auth.verifyOtp({ token_hash: tokenHash, type: 'email' })
    const refusal = error && refusalOf(error)
    return refusal?.error === 'code-wrong' ? { ...refusal, error: 'link-used' } : refusal
  }

  /** End this session, or all of this person's. What fails at the server is forgotten here all the same. */
  async signOut(everywhere: boolean): Promise<void> {
    const { error } = await this.#auth.signOut({ scope: everywhere ? 'global' : 'local' })
    if (error) await this.#auth.signOut({ scope: 'local' })
  }

  /** A token that is valid, or null: nobody is signed in. `anew`: the one before was refused. */
  async token(anew = false): Promise<string | null> {
    if (anew) {
      const { data } = await this.#auth.refreshSession()
      return data.session?.access_token ?? null
    }
    const { data } = await this.#auth.getSession()
    return data.session?.access_token ?? null
  }
}

const KNOWN: Record<string, SignInError> = {
  otp_expired: 'code-wrong',
  over_email_send_rate_limit: 'mail-too-soon',
  over_request_rate_limit: 'too-many-requests',
  email_address_not_authorized: 'mail-not-sent',
  email_address_invalid: 'address-invalid',
  validation_failed: 'address-invalid',
  signup_disabled: 'not-invited',
  otp_disabled: 'not-invited',
}

function refusalOf(error: AuthError): Refusal {
  const seconds = Number(/after (\d+) seconds/.exec(error.message)?.[1] ?? 0)
  const known = KNOWN[error.code ?? '']
  if (known) return { error: known, seconds }
  if (error.name === 'AuthRetryableFetchError') return { error: 'unreachable', seconds }
  return { error: error.status === 429 ? 'too-many-requests' : 'unknown', seconds }
}

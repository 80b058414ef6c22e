/** What differs between environments; /config.js sets it before this program starts. */
export interface Config {
  apiUrl: string
  supabaseUrl: string
  publishableKey: string
  /** `invited`: nobody gets an account by asking for a mail. */
  signUp: 'open' | 'invited'
}

declare global {
  interface Window {
    CIMT?: Partial<Config>
  }
}

/** The configuration, or null where an address is missing: then nothing can work. */
export function readConfig(given: Partial<Config> | undefined = window.CIMT): Config | null {
  const { apiUrl, supabaseUrl, publishableKey, signUp } = given ?? {}
  if (!apiUrl || !supabaseUrl || !publishableKey) return null
  return { apiUrl, supabaseUrl, publishableKey, signUp: signUp === 'invited' ? 'invited' : 'open' }
}

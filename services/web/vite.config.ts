import react from '@vitejs/plugin-react'
import type { Plugin } from 'vite'
import { defineConfig } from 'vitest/config'

// What start.sh makes where the page is served, of the same variables; here for the server of `make dev`.
function runtimeConfig(): Plugin {
  return {
    name: 'config.js',
    configureServer(server) {
      server.middlewares.use('/config.js', (_, response) => {
        const { API_URL, SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY, SIGN_UP } = process.env
        const config = {
          apiUrl: API_URL,
          supabaseUrl: SUPABASE_URL,
          publishableKey: SUPABASE_PUBLISHABLE_KEY,
          signUp: SIGN_UP ?? 'open',
        }
        response.setHeader('Content-Type', 'text/javascript')
        response.setHeader('Cache-Control', 'no-store')
        response.end(`window.CIMT = ${JSON.stringify(config)}\n`)
      })
    },
  }
}

// Passkeys, wallets, and what only a secret key may do: a sixth of auth-js, and none of it is used here. Should a new
// version of it want more of these files, the build fails for want of an export, or the sign-in's tests do.
const UNUSED: Record<string, string> = {
  'lib/webauthn.js':
    'const none = undefined; export class WebAuthnApi {}; export { none as createCredential, none as getCredential, ' +
    'none as deserializeCredentialCreationOptions, none as deserializeCredentialRequestOptions, ' +
    'none as serializeCredentialCreationResponse, none as serializeCredentialRequestResponse, ' +
    'none as browserSupportsWebAuthn, none as webAuthnAbortService }',
  'lib/web3/ethereum.js':
    'const none = undefined; export { none as createSiweMessage, none as fromHex, none as getAddress, none as toHex }',
  'GoTrueAdminApi.js': `
    import { _request } from './lib/fetch'
    import { isAuthError } from './lib/errors'
    import { resolveFetch } from './lib/helpers'
    export default class {
      constructor(options) { this.options = options }
      async signOut(jwt, scope) {
        const { url, headers, fetch } = this.options
        try {
          await _request(resolveFetch(fetch), 'POST', url + '/logout?scope=' + scope, { headers, jwt, noResolveJson: true })
          return { data: null, error: null }
        } catch (error) {
          if (isAuthError(error)) return { data: null, error }
          throw error
        }
      }
    }`,
}

// Ways to sign in that are not offered, and what belongs to them alone: methods of GoTrueClient that nothing here calls.
const UNCALLED = new Set(
  `signInWithEthereum signInWithSolana signInWithIdToken signInWithOAuth signInWithPasskey registerPasskey signInWithSSO
  signInWithPassword signInAnonymously signUp linkIdentity linkIdentityIdToken linkIdentityOAuth unlinkIdentity
  getUserIdentities resetPasswordForEmail resend reauthenticate _reauthenticate getClaims fetchJwk updateUser _updateUser`.split(/\s+/),
)

function leaveOut(): Plugin {
  const within = (id: string) => id.split('/@supabase/auth-js/dist/module/')[1] ?? ''
  return {
    name: 'leave-out',
    apply: 'build',
    load: (id) => UNUSED[within(id)],
    transform(code, id) {
      if (within(id) !== 'GoTrueClient.js') return
      let kept = ''
      let from = 0
      for (const statement of this.parse(code).body) {
        if (statement.type !== 'ClassDeclaration') continue
        for (const member of statement.body.body) {
          if (member.type !== 'MethodDefinition' || member.key.type !== 'Identifier') continue
          if (!UNCALLED.has(member.key.name)) continue
          kept += code.slice(from, member.start)
          from = member.end
        }
      }
      return { code: kept + code.slice(from), map: null }
    },
  }
}

export default defineConfig({
  plugins: [react(), runtimeConfig(), leaveOut()],
  cacheDir: '../../node_modules/.cache/web',
  // One chunk: an open page never asks for a file that a release has taken away.
  build: {
    target: 'es2022',
    assetsInlineLimit: 0,
    modulePreload: false,
    rollupOptions: { output: { codeSplitting: false } },
  },
  test: { include: ['tests/**/*.test.{ts,tsx}'], environment: 'happy-dom' },
})
